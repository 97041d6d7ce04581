//! Every setting of the token-choice pipeline, on sizes at boundaries, with poisoned logits: the CPU is the oracle.

use fused_moe::Device;
use fused_moe::backend::cpu::{Cpu, InstructionSet};
use fused_moe::routing::presets::published;
use fused_moe::routing::{GroupLimit, GroupScore, Renormalize, RouterConfig, ScoreFunction, Selection, WeightFunction};

use crate::support::Case;

const SIZES: [(usize, usize); 9] = [(1, 1), (3, 2), (7, 3), (12, 4), (16, 16), (60, 4), (160, 6), (257, 8), (512, 22)];
const TOKENS: [usize; 5] = [0, 1, 2, 33, 150];

fn all_sizes(make: impl Fn(usize, usize) -> RouterConfig, bias: bool) {
    for (num_choices, top_k) in SIZES {
        for num_tokens in TOKENS {
            let case = Case::random(make(num_choices, top_k), num_tokens, num_choices, num_choices as u64);
            let case = if bias { case.with_bias(7) } else { case };
            case.checked();
        }
    }
}

#[test]
fn scores_and_weights() {
    for score in [ScoreFunction::Logit, ScoreFunction::Softmax, ScoreFunction::Sigmoid, ScoreFunction::SqrtSoftplus] {
        for weight in
            [WeightFunction::Score, WeightFunction::SoftmaxOverSelected, WeightFunction::Sigmoid, WeightFunction::One]
        {
            for bias in [false, true] {
                all_sizes(|_, top_k| RouterConfig { score, weight, ..RouterConfig::softmax_top_k(top_k) }, bias);
            }
        }
    }
}

#[test]
fn renormalised_and_scaled() {
    for p in [1.0, 2.0, 3.0] {
        all_sizes(
            |_, top_k| RouterConfig {
                renormalize: Some(Renormalize { add: 1e-20, min: 1e-12, p }),
                scaling_factor: 2.5,
                ..RouterConfig::softmax_top_k(top_k)
            },
            true,
        );
    }
}

#[test]
fn clipped_and_capped() {
    all_sizes(|_, k| RouterConfig { logit_clip: Some(1.5), ..RouterConfig::softmax_top_k(k) }, false);
    all_sizes(|_, k| RouterConfig { logit_softcap: Some(3.0), ..RouterConfig::softmax_top_k(k) }, true);
}

#[test]
fn group_limited() {
    for (num_choices, num_groups, topk_groups, top_k) in
        [(8, 8, 2, 2), (12, 4, 2, 5), (128, 4, 2, 4), (160, 8, 3, 6), (256, 8, 4, 8), (512, 16, 8, 16), (257, 1, 1, 8)]
    {
        for score in [GroupScore::Max, GroupScore::SumTop2] {
            for function in [ScoreFunction::Softmax, ScoreFunction::Sigmoid, ScoreFunction::Logit] {
                let config = RouterConfig {
                    score: function,
                    groups: Some(GroupLimit { num_groups, topk_groups, score }),
                    renormalize: Some(Renormalize::default()),
                    ..RouterConfig::softmax_top_k(top_k)
                };
                Case::random(config.clone(), 90, num_choices, 3).checked();
                Case::random(config, 90, num_choices, 4).with_bias(5).checked();
            }
        }
    }
}

#[test]
fn group_mask_is_below_negative_choices() {
    // All choices are negative: an expert outside the groups must not win with a 0 (as it does in masks by 0).
    let config = RouterConfig {
        score: ScoreFunction::Sigmoid,
        groups: Some(GroupLimit { num_groups: 2, topk_groups: 1, score: GroupScore::SumTop2 }),
        ..RouterConfig::softmax_top_k(3)
    };
    let mut case = Case::new(config, vec![2.0, 1.0, 0.5, -3.0, -3.0, -3.0], 6);
    case.bias = Some(vec![-5.0; 6]);
    let routed = case.checked();
    assert_eq!(routed.ids, [0, 1, 2]);
    assert!((routed.weights[0] - 0.880_797).abs() < 1e-6, "the bias does not weigh");
}

#[test]
fn sparse_mixer() {
    for num_choices in [2, 7, 16, 257] {
        let config = RouterConfig {
            score: ScoreFunction::Logit,
            selection: Selection::SparseMixer { jitter: 0.3 },
            ..RouterConfig::softmax_top_k(2)
        };
        Case::random(config, 40, num_choices, 11).checked();
    }
}

#[test]
fn poisoned_logits() {
    let poison = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN, 0.0, -0.0];
    let selections = [Selection::TopK, Selection::SparseMixer { jitter: 0.01 }];
    for score in [ScoreFunction::Softmax, ScoreFunction::Sigmoid, ScoreFunction::SqrtSoftplus] {
        for weight in [WeightFunction::Score, WeightFunction::SoftmaxOverSelected, WeightFunction::Sigmoid] {
            for selection in selections {
                for bias in [false, true] {
                    let config = RouterConfig { score, weight, selection, ..RouterConfig::softmax_top_k(2) };
                    let mut case = Case::random(config, 60, 9, 1);
                    for (i, logit) in case.logits.iter_mut().enumerate() {
                        if i / 9 < poison.len() {
                            *logit = poison[i / 9];
                        } else if i % 3 == 0 {
                            *logit = poison[i / 3 % poison.len()];
                        }
                    }
                    let case = if bias { case.with_bias(2) } else { case };
                    case.checked();
                }
            }
        }
    }
}

#[test]
fn ties_go_to_the_lowest_id() {
    let config = RouterConfig::softmax_top_k(3);
    let case = Case::new(config, vec![0.0, -0.0, 1.0, 0.0, -0.0, 1.0, 1.0, 1.0], 8);
    assert_eq!(case.checked().ids, [2, 5, 6]);
    let case = Case::new(RouterConfig::softmax_top_k(3), vec![f32::NAN; 40], 20);
    assert_eq!(case.checked().ids, [0, 1, 2, 0, 1, 2]);
}

#[test]
fn zero_experts_are_chosen_as_others() {
    let config = RouterConfig { num_zero_experts: 3, ..RouterConfig::softmax_top_k(4) };
    let routed = Case::random(config, 50, 10, 8).with_bias(1).checked();
    assert!(routed.ids.iter().any(|&id| id >= 7));
}

/// Every rule by name, and some beside, by the kernels of every instruction set that is here: the same bits.
#[test]
fn instruction_sets_do_not_show() {
    let devices: Vec<Device> = InstructionSet::ALL
        .into_iter()
        .filter(|set| set.is_available())
        .map(|set| Device::new(Cpu::builder().instruction_set(set).build().expect("it is available")))
        .collect();
    let others = [ScoreFunction::SqrtSoftplus, ScoreFunction::Sigmoid].map(|score| {
        let config = RouterConfig { score, logit_softcap: Some(3.0), ..RouterConfig::softmax_top_k(5) };
        (config, 33)
    });
    let rules = published().into_iter().map(|preset| (preset.config, preset.num_experts)).chain(others);
    for (config, num_experts) in rules {
        let case = Case::random(config, 70, num_experts, 6);
        let expected = case.checked();
        let first = case.route_on(&devices[0]).expect("a valid case");
        assert_eq!(first.ids, expected.ids);
        for device in &devices {
            assert_eq!(case.route_on(device).expect("a valid case"), first, "{device}, {:?}", case.config);
        }
    }
}
