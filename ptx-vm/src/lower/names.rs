//! Predefined names: special registers and constants.

use crate::ir::{LaneMask, Special};

/// What a predefined name stands for.
pub(super) enum Name {
    Constant(u64),
    Special(Special),
}

/// Looks up a predefined name. Clocks are not here: they change while a thread runs.
pub(super) fn special(name: &str) -> Option<Name> {
    use Special::*;
    let (base, axis) = match name.rsplit_once('.') {
        Some((base, "x")) => (base, Some(0)),
        Some((base, "y")) => (base, Some(1)),
        Some((base, "z")) => (base, Some(2)),
        _ => (name, None),
    };
    if let Some(axis) = axis {
        return Some(Name::Special(match base {
            "%tid" => Tid(axis),
            "%ntid" => Ntid(axis),
            "%ctaid" => Ctaid(axis),
            "%nctaid" => Nctaid(axis),
            "%clusterid" => ClusterId(axis),
            "%nclusterid" => NumClusters(axis),
            "%cluster_ctaid" => ClusterCtaid(axis),
            "%cluster_nctaid" => ClusterNctaid(axis),
            _ => return None,
        }));
    }
    Some(match name {
        "WARP_SZ" => Name::Constant(32),
        "%laneid" => Name::Special(Lane),
        "%warpid" => Name::Special(WarpId),
        "%nwarpid" => Name::Special(NumWarps),
        "%smid" => Name::Special(SmId),
        "%nsmid" => Name::Special(NumSms),
        "%gridid" => Name::Special(GridId),
        "%lanemask_eq" => Name::Special(LaneMask(self::LaneMask::Eq)),
        "%lanemask_lt" => Name::Special(LaneMask(self::LaneMask::Lt)),
        "%lanemask_le" => Name::Special(LaneMask(self::LaneMask::Le)),
        "%lanemask_gt" => Name::Special(LaneMask(self::LaneMask::Gt)),
        "%lanemask_ge" => Name::Special(LaneMask(self::LaneMask::Ge)),
        "%cluster_ctarank" => Name::Special(ClusterCtaRank),
        "%cluster_nctarank" => Name::Special(ClusterNctaRank),
        "%is_explicit_cluster" => Name::Special(IsExplicitCluster),
        "%dynamic_smem_size" => Name::Special(DynamicSharedBytes),
        "%total_smem_size" => Name::Special(TotalSharedBytes),
        _ => return None,
    })
}
