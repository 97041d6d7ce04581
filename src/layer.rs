//! The layer: the steps in a row.

use crate::backend::Device;
use crate::config::{MoeConfig, WeightLayout};
use crate::error::{Error, Result};
use crate::ops::{
    CombineArgs, CombineNext, Epilogue, Expect, GroupedGemmArgs, GroupedGemmCombineArgs, InputRows, JitterArgs,
    PermuteArgs, RouteArgs, RouteInputs, RoutePermuteArgs, RouterLogitsArgs, SharedOutput, ZeroExperts, combine,
    grouped_gemm, grouped_gemm_combine, jitter, permute, route_permute, router_logits,
};
pub use crate::plan::Routing;
use crate::plan::{PermutePlan, Slots};
use crate::routing::{Noise, NoiseKind, WeightsOn};
use crate::tensor::{AsView, DType, FLOATS, Shape, Tensor, TensorView, TensorViewMut};
use crate::weights::{ExpertWeights, MoeWeights, RouterWeights, view};
use crate::workspace::{
    ExpertBuffers, LatentBuffers, PlanBuffers, RaggedBuffers, RoutingBuffers, SharedBuffers, Workspace,
};

/// How a layer runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LayerOptions {
    /// A token's output is the same, bit for bit, whatever tokens are beside it. Costs speed.
    pub batch_invariant: bool,
}

/// A MoE layer on a device: configuration and weights that fit each other.
///
/// Making one only checks shapes, so an engine that keeps its own weights can make a borrowed layer for each call.
#[derive(Clone, Debug)]
pub struct MoeLayer<T = Tensor> {
    device: Device,
    config: MoeConfig,
    weights: MoeWeights<T>,
    options: LayerOptions,
}

/// The parts of a workspace behind the router.
struct Buffers<'b> {
    routed: &'b mut ExpertBuffers,
    shared: Option<&'b mut SharedBuffers>,
    latent: Option<&'b mut LatentBuffers>,
}

/// A stack of experts to run: the routed ones, or the shared one.
struct Stack<'a, T> {
    weights: &'a ExpertWeights<T>,
    epilogue: Epilogue,
    weight_layout: WeightLayout,
    /// Rows per expert; `None` where one expert takes them all.
    expert_offsets: Option<TensorView<'a>>,
}

impl<T: AsView> MoeLayer<T> {
    /// A layer of weights that lie on `device`. Without a router's weights the caller routes, and the layer may have
    /// fewer experts than a token picks: those of one rank.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] naming the first field of the configuration or weight that does not fit.
    pub fn new(device: &Device, config: MoeConfig, weights: MoeWeights<T>) -> Result<Self> {
        config.validate_with(weights.router.is_some())?;
        weights.check(device, &config)?;
        Ok(Self { device: device.clone(), config, weights, options: LayerOptions::default() })
    }

    /// The same layer, run as `options` say.
    pub fn with_options(self, options: LayerOptions) -> Self {
        Self { options, ..self }
    }

    /// What the layer is.
    pub fn config(&self) -> &MoeConfig {
        &self.config
    }

    /// Where the layer is.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The layer's weights.
    pub fn weights(&self) -> &MoeWeights<T> {
        &self.weights
    }

    /// Memory for calls with up to `max_tokens` tokens.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if a size overflows, [`Error::Device`] if the device has no room.
    pub fn workspace(&self, max_tokens: usize) -> Result<Workspace> {
        let dtype = self.weights.experts.down_proj.as_view().dtype();
        Workspace::new(&self.device, &self.config, self.device.backend().intermediate_dtype(dtype), max_tokens)
    }

    /// `output = layer(hidden_states)`, both `[T, H]` f32, bf16 or f16. The residual is the caller's.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if a shape or type does not fit, or T exceeds the workspace's `max_tokens`;
    /// otherwise the backend's.
    pub fn forward(
        &self,
        hidden_states: TensorView<'_>,
        output: TensorViewMut<'_>,
        workspace: &mut Workspace,
    ) -> Result<()> {
        self.forward_with(hidden_states, RouteInputs::default(), output, workspace)
    }

    /// As [`MoeLayer::forward`], with what the router's rule needs besides logits: token ids, sequence lengths, ….
    ///
    /// # Errors
    /// As [`MoeLayer::forward`].
    pub fn forward_with(
        &self,
        hidden_states: TensorView<'_>,
        inputs: RouteInputs<'_>,
        output: TensorViewMut<'_>,
        workspace: &mut Workspace,
    ) -> Result<()> {
        self.check_call(hidden_states, output.as_view(), workspace)?;
        let Workspace { routing, plan, routed, shared, latent, .. } = workspace;
        let (routing, plan) = self.route(hidden_states, inputs, routing, plan)?;
        let buffers = Buffers { routed, shared: shared.as_mut(), latent: latent.as_mut() };
        self.experts(hidden_states, routing, plan, output, buffers)
    }

    /// As [`MoeLayer::forward_with`], with the router's logits made by the caller: `[T, E]` f32. The rule that chooses by
    /// them is the layer's.
    ///
    /// # Errors
    /// As [`MoeLayer::forward`].
    pub fn forward_logits(
        &self,
        hidden_states: TensorView<'_>,
        router_logits: TensorView<'_>,
        inputs: RouteInputs<'_>,
        output: TensorViewMut<'_>,
        workspace: &mut Workspace,
    ) -> Result<()> {
        let num_tokens = self.check_call(hidden_states, output.as_view(), workspace)?;
        let shape = [num_tokens, self.config.router.num_logits(self.config.num_experts)];
        Expect::on(&self.device).tensor("router_logits", router_logits, shape, &[DType::F32])?;
        let Workspace { routing, plan, routed, shared, latent, .. } = workspace;
        let RoutingBuffers { topk_ids, topk_weights, ragged, .. } = routing;
        let (routing, plan) = self.choose(router_logits, inputs, (topk_ids, topk_weights), ragged.as_mut(), plan)?;
        let buffers = Buffers { routed, shared: shared.as_mut(), latent: latent.as_mut() };
        self.experts(hidden_states, routing, plan, output, buffers)
    }

    /// As [`MoeLayer::forward`], with the routing made by the caller. Ids of no expert (`u32::MAX`, say) add nothing.
    ///
    /// # Errors
    /// As [`MoeLayer::forward`].
    pub fn forward_routed(
        &self,
        hidden_states: TensorView<'_>,
        routing: Routing<'_>,
        output: TensorViewMut<'_>,
        workspace: &mut Workspace,
    ) -> Result<()> {
        let num_tokens = self.check_call(hidden_states, output.as_view(), workspace)?;
        let expect = Expect::on(&self.device);
        let num_slots = expect.slots(routing.slots, num_tokens)?;
        let most = workspace.max_slots();
        if num_slots > most {
            return Err(Error::invalid("routing.slots", format!("at most the workspace's {most} slots"), num_slots));
        }
        let expected: Shape = match routing.slots {
            Slots::PerToken { top_k } => [num_tokens, top_k].into(),
            Slots::Ragged { .. } => [num_slots].into(),
        };
        expect.tensor("topk_ids", routing.topk_ids, expected, &[DType::U32])?;
        expect.tensor("topk_weights", routing.topk_weights, expected, &[DType::F32])?;
        let Workspace { plan, routed, shared, latent, .. } = workspace;
        let plan = self.permute(routing.topk_ids, plan)?;
        let buffers = Buffers { routed, shared: shared.as_mut(), latent: latent.as_mut() };
        self.experts(hidden_states, routing, plan, output, buffers)
    }

    /// What the caller gave fits, under the caller's names; returns T.
    fn check_call(
        &self,
        hidden_states: TensorView<'_>,
        output: TensorView<'_>,
        workspace: &Workspace,
    ) -> Result<usize> {
        let expect = Expect::on(&self.device);
        expect.elements("hidden_states", hidden_states, FLOATS)?;
        workspace.check(&self.device, &self.config)?;
        let hidden_size = self.config.hidden_size;
        match *hidden_states.dims() {
            [num_tokens, h] if h == hidden_size && num_tokens <= workspace.max_tokens => {
                expect.tensor("output", output, [num_tokens, hidden_size], FLOATS)?;
                Ok(num_tokens)
            }
            _ => Err(Error::invalid(
                "hidden_states",
                format!("shape [T, {hidden_size}], T up to the workspace's {}", workspace.max_tokens),
                hidden_states.shape(),
            )),
        }
    }

    /// hidden_states → router_logits → topk_ids, topk_weights → plan.
    fn route<'b>(
        &self,
        hidden_states: TensorView<'_>,
        inputs: RouteInputs<'_>,
        buffers: &'b mut RoutingBuffers,
        plan: &'b mut PlanBuffers,
    ) -> Result<(Routing<'b>, PermutePlan<'b>)> {
        let router = self.weights.router.as_ref().ok_or_else(|| {
            Error::invalid("weights.router", "a router, or routing by the caller (forward_routed)", "none")
        })?;
        let config = &self.config.router;
        let num_tokens = hidden_states.dims()[0];
        let logits_shape = [num_tokens, config.num_logits(self.config.num_experts)];
        let RoutingBuffers { router_hidden, router_logits: logits, topk_ids, topk_weights, ragged, jittered } = buffers;
        let hidden_states = self.jittered(hidden_states, jittered.as_mut())?;
        let input = self.router_input(hidden_states, router, router_hidden.as_mut())?;
        router_logits(
            &self.device,
            RouterLogitsArgs {
                hidden_states: input,
                weight: router.weight.as_view(),
                bias: view(&router.bias),
                tanh: false,
                output: logits.prefix_mut(logits_shape)?,
            },
        )?;
        self.choose(logits.prefix(logits_shape), inputs, (topk_ids, topk_weights), ragged.as_mut(), plan)
    }

    /// router_logits → topk_ids, topk_weights → plan.
    fn choose<'b>(
        &self,
        router_logits: TensorView<'_>,
        inputs: RouteInputs<'_>,
        (topk_ids, topk_weights): (&'b mut Tensor, &'b mut Tensor),
        mut ragged: Option<&'b mut RaggedBuffers>,
        plan: &'b mut PlanBuffers,
    ) -> Result<(Routing<'b>, PermutePlan<'b>)> {
        let config = &self.config.router;
        let num_tokens = router_logits.dims()[0];
        let num_slots = config
            .num_slots(num_tokens, config.num_choices(self.config.num_experts))
            .ok_or_else(|| Error::invalid("hidden_states", "slots that fit usize", num_tokens))?;
        let ids_shape: Shape = if ragged.is_some() { [num_slots].into() } else { [num_tokens, config.top_k].into() };
        let route = RouteArgs {
            config,
            router_logits,
            selection_bias: self.weights.router.as_ref().and_then(|router| view(&router.selection_bias)),
            inputs,
            topk_ids: topk_ids.prefix_mut(ids_shape)?,
            topk_weights: topk_weights.prefix_mut(ids_shape)?,
            ragged: ragged.as_mut().map(|ragged| ragged.prefix_mut(num_tokens, num_slots)).transpose()?,
            figures: None,
        };
        route_permute(&self.device, RoutePermuteArgs { route, plan: plan.view_mut(num_slots)? })?;
        let slots = match ragged {
            Some(ragged) => ragged.slots(num_tokens, num_slots),
            None => Slots::PerToken { top_k: config.top_k },
        };
        let routing =
            Routing { topk_ids: topk_ids.prefix(ids_shape), topk_weights: topk_weights.prefix(ids_shape), slots };
        Ok((routing, plan.view(num_slots)))
    }

    /// The router's input: the hidden states, with noise where the rule asks for it.
    fn jittered<'b>(&self, hidden_states: TensorView<'b>, buffer: Option<&'b mut Tensor>) -> Result<TensorView<'b>> {
        let (Some(Noise { seed, kind: NoiseKind::InputJitter { epsilon } }), Some(buffer)) =
            (self.config.router.noise, buffer)
        else {
            return Ok(hidden_states);
        };
        let shape = [hidden_states.dims()[0], self.config.hidden_size];
        jitter(&self.device, JitterArgs { hidden_states, seed, epsilon, output: buffer.prefix_mut(shape)? })?;
        Ok(buffer.prefix(shape))
    }

    /// What the router's last projection sees: the hidden states, or the router's own hidden layer.
    fn router_input<'b>(
        &self,
        hidden_states: TensorView<'b>,
        router: &RouterWeights<T>,
        buffer: Option<&'b mut Tensor>,
    ) -> Result<TensorView<'b>> {
        let (Some(weight), Some(buffer)) = (&router.hidden, buffer) else { return Ok(hidden_states) };
        let weight = weight.as_view();
        let shape = [hidden_states.dims()[0], weight.dims()[0]];
        let output = buffer.prefix_mut(shape)?;
        router_logits(&self.device, RouterLogitsArgs { hidden_states, weight, bias: None, tanh: true, output })?;
        Ok(buffer.prefix(shape))
    }

    /// Everything behind the plan: the two grouped GEMMs, combine; and what is added to the sum.
    fn experts(
        &self,
        hidden_states: TensorView<'_>,
        routing: Routing<'_>,
        plan: PermutePlan<'_>,
        output: TensorViewMut<'_>,
        buffers: Buffers<'_>,
    ) -> Result<()> {
        let config = &self.config;
        let slots = routing.slots;
        let num_slots = routing.topk_ids.shape().numel();
        let topk_weights = routing.topk_weights.reshape([num_slots])?;
        let (slot_scale, combine_weights) = match config.router.weights_on {
            WeightsOn::Output => (None, Some(topk_weights)),
            WeightsOn::Input => (Some(topk_weights), None),
        };
        let shared = buffers.shared.map(|buffers| self.shared_expert(hidden_states, buffers)).transpose()?.flatten();
        let (latent_input, latent) = buffers.latent.map(|b| (&mut b.input, (&mut b.combined, &mut b.output))).unzip();
        let input = self.latent_input(hidden_states, latent_input)?;

        let rows = InputRows::Gathered { permuted_idx: plan.permuted_idx, slots, slot_scale };
        let stack = Stack {
            weights: &self.weights.experts,
            epilogue: Epilogue::of(config.activation, config.gate_up_layout),
            weight_layout: config.weight_layout,
            expert_offsets: Some(plan.expert_offsets),
        };
        let gemm = self.up_projection(stack, input, rows, num_slots, buffers.routed)?;
        let topk_ids = routing.topk_ids.reshape([num_slots])?;
        let zero_experts = (config.router.num_zero_experts > 0).then_some(ZeroExperts {
            topk_ids,
            topk_weights,
            first: config.num_experts as u32,
            count: config.router.num_zero_experts as u32,
            hidden_states: input,
        });
        let sum = CombineNext {
            inv_permuted_idx: Some(plan.inv_permuted_idx),
            topk_weights: combine_weights,
            slots,
            zero_experts,
            shared,
            output,
        };
        match latent {
            None => grouped_gemm_combine(&self.device, GroupedGemmCombineArgs { gemm, combine: sum }),
            Some(latent) => self.latent_output(gemm, sum, latent),
        }
    }

    fn permute<'b>(&self, topk_ids: TensorView<'_>, buffers: &'b mut PlanBuffers) -> Result<PermutePlan<'b>> {
        let num_slots = topk_ids.shape().numel();
        permute(&self.device, PermuteArgs { topk_ids, plan: buffers.view_mut(num_slots)? })?;
        Ok(buffers.view(num_slots))
    }

    /// input → gate_up_proj, activation, for up to `num_rows` rows; returns what is left to do: → down_proj.
    fn up_projection<'b>(
        &self,
        stack: Stack<'b, T>,
        input: TensorView<'_>,
        rows: InputRows<'_>,
        num_rows: usize,
        buffers: &'b mut ExpertBuffers,
    ) -> Result<GroupedGemmArgs<'b>> {
        let batch_invariant = self.options.batch_invariant;
        let Stack { weights, epilogue, weight_layout, expert_offsets } = stack;
        let weight_dtype = weights.down_proj.as_view().dtype();
        let dtype = self.device.backend().intermediate_dtype_of(weight_dtype, num_rows, batch_invariant);
        let act_shape = [num_rows, buffers.act.shape().dims()[1]];
        grouped_gemm(
            &self.device,
            GroupedGemmArgs {
                input,
                rows,
                expert_offsets,
                weight: weights.gate_up_proj.as_view(),
                weight_layout,
                bias: view(&weights.gate_up_bias),
                epilogue,
                output: buffers.act.prefix_as_mut(dtype, act_shape)?,
                batch_invariant,
            },
        )?;
        let out_shape = [num_rows, buffers.expert_out.shape().dims()[1]];
        Ok(GroupedGemmArgs {
            input: buffers.act.prefix_as(dtype, act_shape),
            rows: InputRows::Same,
            expert_offsets,
            weight: weights.down_proj.as_view(),
            weight_layout,
            bias: view(&weights.down_bias),
            epilogue: Epilogue::None,
            output: buffers.expert_out.prefix_as_mut(dtype, out_shape)?,
            batch_invariant,
        })
    }

    fn shared_expert<'b>(
        &self,
        hidden_states: TensorView<'_>,
        buffers: &'b mut SharedBuffers,
    ) -> Result<Option<SharedOutput<'b>>> {
        let (Some(config), Some(weights)) = (&self.config.shared, &self.weights.shared) else { return Ok(None) };
        let num_tokens = hidden_states.dims()[0];
        if let Some(gate) = &weights.gate {
            router_logits(
                &self.device,
                RouterLogitsArgs {
                    hidden_states,
                    weight: gate.as_view(),
                    bias: None,
                    tanh: false,
                    output: buffers.gate_logits.prefix_mut([num_tokens, 1])?,
                },
            )?;
        }
        let stack = Stack {
            weights: &weights.experts,
            epilogue: Epilogue::of(config.activation, config.gate_up_layout),
            weight_layout: config.weight_layout,
            expert_offsets: None,
        };
        let gemm = self.up_projection(stack, hidden_states, InputRows::Same, num_tokens, &mut buffers.experts)?;
        let (dtype, shape) = (gemm.output.dtype(), gemm.output.shape());
        grouped_gemm(&self.device, gemm)?;
        let output = buffers.experts.expert_out.prefix_as(dtype, shape);
        let gate_logits = weights.gate.is_some().then(|| buffers.gate_logits.prefix([num_tokens, 1]));
        Ok(Some(SharedOutput { output, gate_logits, scale: config.output_scale }))
    }

    /// One linear projection of every row.
    fn project(
        &self,
        input: TensorView<'_>,
        weight: &T,
        bias: Option<TensorView<'_>>,
        output: TensorViewMut<'_>,
    ) -> Result<()> {
        grouped_gemm(
            &self.device,
            GroupedGemmArgs {
                input,
                rows: InputRows::Same,
                expert_offsets: None,
                weight: weight.as_view(),
                weight_layout: WeightLayout::Nk,
                bias,
                epilogue: Epilogue::None,
                output,
                batch_invariant: self.options.batch_invariant,
            },
        )
    }

    /// The routed experts' input: the hidden states, projected into the latent space where there is one.
    fn latent_input<'b>(
        &self,
        hidden_states: TensorView<'b>,
        buffer: Option<&'b mut Tensor>,
    ) -> Result<TensorView<'b>> {
        let (Some(weights), Some(buffer)) = (&self.weights.latent, buffer) else { return Ok(hidden_states) };
        let shape = [hidden_states.dims()[0], self.config.expert_hidden_size()];
        self.project(hidden_states, &weights.down, view(&weights.down_bias), buffer.prefix_mut(shape)?)?;
        Ok(buffer.prefix(shape))
    }

    /// Combines in the latent space, projects back, and adds the shared expert's output there.
    fn latent_output(
        &self,
        gemm: GroupedGemmArgs<'_>,
        sum: CombineNext<'_>,
        (combined, projected): (&mut Tensor, &mut Tensor),
    ) -> Result<()> {
        let Some(weights) = &self.weights.latent else {
            return grouped_gemm_combine(&self.device, GroupedGemmCombineArgs { gemm, combine: sum });
        };
        let CombineNext { shared, output, .. } = sum;
        let shape = [output.dims()[0], self.config.hidden_size];
        let latent_shape = [shape[0], self.config.expert_hidden_size()];
        let in_latent = CombineNext { shared: None, output: combined.prefix_mut(latent_shape)?, ..sum };
        grouped_gemm_combine(&self.device, GroupedGemmCombineArgs { gemm, combine: in_latent })?;
        self.project(combined.prefix(latent_shape), &weights.up, view(&weights.up_bias), projected.prefix_mut(shape)?)?;
        let sum = CombineArgs {
            expert_out: projected.prefix(shape),
            inv_permuted_idx: None,
            topk_weights: None,
            slots: Slots::PerToken { top_k: 1 },
            zero_experts: None,
            shared,
            output,
        };
        combine(&self.device, sum)
    }
}
