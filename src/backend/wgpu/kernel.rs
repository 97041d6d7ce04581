//! The kernels: their sources, what they bind, and the pipelines made of them, each once per device.

use std::collections::HashMap;
use std::sync::Mutex;

/// Bytes kept for the parameters of one launch: the largest alignment that an adapter may ask of uniform buffers.
pub(super) const MAX_PARAMS: usize = 256;

/// A storage binding's access, in the order of the shader's bindings from 1 on (0 holds the parameters).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    Read,
    Write,
}
use Access::{Read, Write};

/// A composed and validated WGSL module, and what its entry points bind.
#[derive(Debug)]
pub(super) struct Kernel {
    pub(super) name: &'static str,
    pub(super) source: &'static str,
    pub(super) bindings: &'static [Access],
}

macro_rules! kernel {
    ($name:ident, $file:literal, $bindings:expr) => {
        pub(super) static $name: Kernel = Kernel {
            name: $file,
            source: include_str!(concat!(env!("OUT_DIR"), "/wgsl/", $file, ".wgsl")),
            bindings: $bindings,
        };
    };
}

const ROUTER_LOGITS_BINDINGS: &[Access] = &[Read, Read, Read, Write];
const ROUTE_BINDINGS: &[Access] = &[Read, Read, Read, Read, Write, Write];
const ROUTE_PICK_BINDINGS: &[Access] = &[Read, Read, Read, Read, Write, Write, Write, Write];
const ROUTE_WEIGH_BINDINGS: &[Access] = &[Read, Read, Read, Read, Write, Write, Read, Read];
const ROUTE_FIGURES_BINDINGS: &[Access] = &[Write, Read, Read, Read, Read, Write, Write, Write];
const GROUPED_GEMM_BINDINGS: &[Access] = &[Read, Read, Read, Read, Read, Read, Read, Write];

kernel!(ROUTER_LOGITS, "router_logits", ROUTER_LOGITS_BINDINGS);
kernel!(ROUTER_LOGITS_SUBGROUP, "router_logits.subgroup", ROUTER_LOGITS_BINDINGS);
kernel!(ROUTE, "route", ROUTE_BINDINGS);
kernel!(ROUTE_SUBGROUP, "route.subgroup", ROUTE_BINDINGS);
kernel!(ROUTE_LEVELS, "route_levels", ROUTE_BINDINGS);
kernel!(ROUTE_LEVELS_SUBGROUP, "route_levels.subgroup", ROUTE_BINDINGS);
kernel!(ROUTE_PROBABILITIES, "route_probabilities", ROUTE_BINDINGS);
kernel!(ROUTE_PROBABILITIES_SUBGROUP, "route_probabilities.subgroup", ROUTE_BINDINGS);
kernel!(ROUTE_PICK, "route_pick", ROUTE_PICK_BINDINGS);
kernel!(ROUTE_PICK_SUBGROUP, "route_pick.subgroup", ROUTE_PICK_BINDINGS);
kernel!(ROUTE_WEIGH, "route_weigh", ROUTE_WEIGH_BINDINGS);
kernel!(ROUTE_WEIGH_SUBGROUP, "route_weigh.subgroup", ROUTE_WEIGH_BINDINGS);
kernel!(ROUTE_PREPARE, "route_prepare", &[Read, Read, Read, Read, Write]);
kernel!(ROUTE_HASH, "route_hash", &[Read, Read, Read, Write]);
kernel!(ROUTE_SINKHORN, "route_sinkhorn", &[Read, Write, Write, Write]);
kernel!(ROUTE_SINKHORN_SUBGROUP, "route_sinkhorn.subgroup", &[Read, Write, Write, Write]);
kernel!(ROUTE_EXPERT_CHOICE, "route_expert_choice", &[Read, Read, Write, Write, Write, Write]);
kernel!(ROUTE_CAPACITY, "route_capacity", &[Read, Read, Read, Write, Write, Write]);
kernel!(ROUTE_CAPACITY_SUBGROUP, "route_capacity.subgroup", &[Read, Read, Read, Write, Write, Write]);
kernel!(ROUTE_FIGURES, "route_figures", ROUTE_FIGURES_BINDINGS);
kernel!(ROUTE_FIGURES_SUBGROUP, "route_figures.subgroup", ROUTE_FIGURES_BINDINGS);
kernel!(ROUTE_MAP, "route_map", &[Read, Write, Write]);
kernel!(PERMUTE, "permute", &[Read, Write, Write, Write, Write]);
kernel!(GROUPED_GEMM, "grouped_gemm", GROUPED_GEMM_BINDINGS);
kernel!(GROUPED_GEMM_HALF, "grouped_gemm.half", GROUPED_GEMM_BINDINGS);
kernel!(MATVEC, "grouped_gemm_matvec", GROUPED_GEMM_BINDINGS);
kernel!(MATVEC_HALF, "grouped_gemm_matvec.half", GROUPED_GEMM_BINDINGS);
kernel!(MATVEC_SUBGROUP, "grouped_gemm_matvec.subgroup", GROUPED_GEMM_BINDINGS);
kernel!(MATVEC_HALF_SUBGROUP, "grouped_gemm_matvec.subgroup.half", GROUPED_GEMM_BINDINGS);
kernel!(BROADCAST, "grouped_gemm_broadcast", GROUPED_GEMM_BINDINGS);
kernel!(BROADCAST_HALF, "grouped_gemm_broadcast.half", GROUPED_GEMM_BINDINGS);
kernel!(COOPERATIVE, "grouped_gemm_coop", GROUPED_GEMM_BINDINGS);
kernel!(COOPERATIVE_HALF, "grouped_gemm_coop.half", GROUPED_GEMM_BINDINGS);
kernel!(COMBINE_SLOTS, "combine_slots", &[Read, Read, Read, Read, Write, Write]);
kernel!(JITTER, "jitter", &[Read, Write]);
kernel!(COMBINE, "combine", &[Read, Read, Read, Read, Read, Read, Read, Write]);

/// Values of a kernel's `override` constants.
pub(super) type Constants = Vec<(&'static str, u32)>;

/// A compute pipeline and the layout of its one bind group.
#[derive(Clone, Debug)]
pub(super) struct Pipeline {
    pub(super) compute: wgpu::ComputePipeline,
    pub(super) bind_group_layout: wgpu::BindGroupLayout,
}

type Key = (&'static str, &'static str, Constants);

/// Pipelines by kernel, entry point and constants.
#[derive(Debug)]
pub(super) struct Pipelines {
    cache: Option<wgpu::PipelineCache>,
    made: Mutex<HashMap<Key, Pipeline>>,
}

impl Pipelines {
    pub(super) fn new(device: &wgpu::Device) -> Self {
        let cache = device.features().contains(wgpu::Features::PIPELINE_CACHE).then(|| {
            let descriptor = wgpu::PipelineCacheDescriptor { label: Some("fused-moe"), data: None, fallback: true };
            // SAFETY: `data`, which must come from wgpu, is none.
            unsafe { device.create_pipeline_cache(&descriptor) }
        });
        Self { cache, made: Mutex::default() }
    }

    /// The pipeline of `kernel`'s `entry` with `constants`; made on the first call, within the caller's error scope.
    pub(super) fn get(
        &self,
        device: &wgpu::Device,
        kernel: &'static Kernel,
        entry: &'static str,
        constants: Constants,
    ) -> Pipeline {
        let mut made = self.made.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let key = (kernel.name, entry, constants);
        if let Some(pipeline) = made.get(&key) {
            return pipeline.clone();
        }
        let pipeline = self.make(device, kernel, entry, &key.2);
        made.entry(key).insert_entry(pipeline.clone());
        pipeline
    }

    /// Forgets a pipeline that turned out not to work.
    pub(super) fn forget(&self, kernel: &'static Kernel, entry: &'static str, constants: Constants) {
        self.made.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).remove(&(kernel.name, entry, constants));
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.made.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).len()
    }

    fn make(
        &self,
        device: &wgpu::Device,
        kernel: &'static Kernel,
        entry: &'static str,
        constants: &Constants,
    ) -> Pipeline {
        let label = Some(kernel.name);
        let source = wgpu::ShaderModuleDescriptor { label, source: wgpu::ShaderSource::Wgsl(kernel.source.into()) };
        let checks = wgpu::ShaderRuntimeChecks { force_loop_bounding: false, ..wgpu::ShaderRuntimeChecks::checked() };
        // SAFETY: all checks stay on but the one against endless loops, and every loop in kernels/wgsl counts up, by at
        // least one, to a bound that does not change in the loop.
        let module = unsafe { device.create_shader_module_trusted(source, checks) };
        let bind_group_layout = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
            label,
            entries: &layout_entries(kernel.bindings),
        });
        let layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label,
            bind_group_layouts: &[Some(&bind_group_layout)],
            immediate_size: 0,
        });
        let constants: Vec<_> = constants.iter().map(|&(name, value)| (name, f64::from(value))).collect();
        let compute = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label,
            layout: Some(&layout),
            module: &module,
            entry_point: Some(entry),
            compilation_options: wgpu::PipelineCompilationOptions {
                constants: &constants,
                // Every kernel writes workgroup memory before it reads it.
                zero_initialize_workgroup_memory: false,
            },
            cache: self.cache.as_ref(),
        });
        Pipeline { compute, bind_group_layout }
    }
}

fn layout_entries(bindings: &[Access]) -> Vec<wgpu::BindGroupLayoutEntry> {
    let entry = |binding: usize, ty, has_dynamic_offset| wgpu::BindGroupLayoutEntry {
        binding: binding as u32,
        visibility: wgpu::ShaderStages::COMPUTE,
        ty: wgpu::BindingType::Buffer { ty, has_dynamic_offset, min_binding_size: None },
        count: None,
    };
    let mut entries = vec![entry(0, wgpu::BufferBindingType::Uniform, true)];
    entries.extend(
        bindings
            .iter()
            .enumerate()
            .map(|(i, &access)| entry(i + 1, wgpu::BufferBindingType::Storage { read_only: access == Read }, false)),
    );
    entries
}
