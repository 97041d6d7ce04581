//! Tiles that were measured to be faster than what the rules in [`super::tile`] choose: data, which `scripts/tune` writes.
//!
//! The table of the build is `tiles.json`; `FUSED_MOE_CUDA_TILES` names another. An entry is for a compute capability and
//! ranges of shapes, never for a device by name; where none fits, or its tile is none of the kernels that take a product,
//! the rules decide.

use std::sync::{LazyLock, PoisonError, RwLock};

use serde::Deserialize;

use crate::error::{Error, Result};

/// A table of tiles.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Table {
    /// The first that fits decides.
    tiles: Vec<Entry>,
    /// Where the table was measured: for the reader.
    #[serde(default, rename = "measured")]
    _measured: Option<String>,
}

/// Which products take a tile. Ranges are inclusive.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    /// Major and minor; absent: all.
    capability: Option<(u32, u32)>,
    #[serde(default = "all")]
    rows_per_expert: (u32, u32),
    #[serde(default = "all")]
    n: (u32, u32),
    #[serde(default = "all")]
    k: (u32, u32),
    /// Rows and columns.
    tile: (u32, u32),
}

/// What a table is asked about.
#[derive(Clone, Copy, Debug)]
pub(super) struct Product {
    pub(super) capability: (u32, u32),
    /// Rows of an expert, were they spread evenly.
    pub(super) rows_per_expert: u32,
    pub(super) n: u32,
    pub(super) k: u32,
}

fn all() -> (u32, u32) {
    (0, u32::MAX)
}

impl Entry {
    fn fits(&self, product: &Product) -> bool {
        let within = |(low, high): (u32, u32), value| (low..=high).contains(&value);
        self.capability.is_none_or(|capability| capability == product.capability)
            && within(self.rows_per_expert, product.rows_per_expert)
            && within(self.n, product.n)
            && within(self.k, product.k)
    }
}

impl Table {
    pub(super) fn parse(text: &str) -> std::result::Result<Self, String> {
        serde_json::from_str(text).map_err(|error| error.to_string())
    }

    /// Rows and columns of the tile for a product, if it was measured.
    pub(super) fn tile(&self, product: &Product) -> Option<(u32, u32)> {
        self.tiles.iter().find(|entry| entry.fits(product)).map(|entry| entry.tile)
    }
}

static TABLE: LazyLock<std::result::Result<Table, String>> =
    LazyLock::new(|| match std::env::var("FUSED_MOE_CUDA_TILES") {
        Ok(path) => std::fs::read_to_string(&path)
            .map_err(|error| error.to_string())
            .and_then(|text| Table::parse(&text))
            .map_err(|error| format!("{path}: {error}")),
        Err(_) => Table::parse(include_str!("tiles.json")),
    });

/// What [`replace`] put in the place of [`TABLE`].
static REPLACED: RwLock<Option<&'static Table>> = RwLock::new(None);

/// The table in force; one without entries where [`check`] fails, and so no device is opened.
pub(super) fn table() -> &'static Table {
    static NONE: Table = Table { tiles: Vec::new(), _measured: None };
    let replaced = *REPLACED.read().unwrap_or_else(PoisonError::into_inner);
    replaced.or(TABLE.as_ref().ok()).unwrap_or(&NONE)
}

/// Puts another table in force, which stays in memory: tuning programs have dozens, and an engine has none.
///
/// # Errors
/// [`Error::InvalidArgument`] if the text is no table.
pub(super) fn replace(text: &str) -> Result<()> {
    let table = Table::parse(text).map_err(|problem| Error::invalid("tiles", "a table of tiles", problem))?;
    *REPLACED.write().unwrap_or_else(PoisonError::into_inner) = Some(Box::leak(Box::new(table)));
    Ok(())
}

/// Reads the table.
///
/// # Errors
/// [`Error::InvalidArgument`] if `FUSED_MOE_CUDA_TILES` names no table.
pub(super) fn check() -> Result<()> {
    let problem = TABLE.as_ref().err();
    problem.map_or(Ok(()), |problem| Err(Error::invalid("FUSED_MOE_CUDA_TILES", "a table of tiles", problem)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRODUCT: Product = Product { capability: (9, 0), rows_per_expert: 100, n: 1536, k: 2048 };

    #[test]
    fn the_first_entry_that_fits_decides() {
        let table = Table::parse(
            r#"{"measured": "a card", "tiles": [
                {"capability": [8, 0], "tile": [16, 128]},
                {"capability": [9, 0], "rows_per_expert": [0, 99], "tile": [64, 256]},
                {"n": [1000, 2000], "k": [2048, 2048], "tile": [128, 128]},
                {"tile": [128, 256]}
            ]}"#,
        )
        .unwrap();
        assert_eq!(table.tile(&PRODUCT), Some((128, 128)));
        assert_eq!(table.tile(&Product { rows_per_expert: 99, ..PRODUCT }), Some((64, 256)));
        assert_eq!(table.tile(&Product { k: 2049, ..PRODUCT }), Some((128, 256)));
        assert_eq!(table.tile(&Product { capability: (8, 0), ..PRODUCT }), Some((16, 128)));
        assert_eq!(Table::default().tile(&PRODUCT), None);
    }

    #[test]
    fn a_misspelt_table_is_an_error() {
        for text in ["", "{}", r#"{"tiles": [{"tile": [64]}]}"#, r#"{"tiles": [{"rows": [0, 1], "tile": [64, 64]}]}"#] {
            assert!(Table::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_table_is_replaced_by_another_and_by_nothing_else() {
        let product = Product { capability: (0, 7), ..PRODUCT };
        replace(r#"{"tiles": [{"capability": [0, 7], "tile": [1, 2]}]}"#).unwrap();
        assert_eq!(table().tile(&product), Some((1, 2)));
        assert!(matches!(replace("[]"), Err(Error::InvalidArgument { .. })));
        assert_eq!(table().tile(&product), Some((1, 2)));
    }

    #[test]
    fn the_tables_entries_name_capabilities_and_tiles_that_exist() {
        let text = include_str!("tiles.json");
        assert!(!text.contains("ptx-vm"), "times of an emulated device mean nothing");
        let table = Table::parse(text).unwrap();
        for entry in &table.tiles {
            assert!(entry.n.0 <= entry.n.1 && entry.k.0 <= entry.k.1, "{entry:?}");
            assert!(entry.rows_per_expert.0 <= entry.rows_per_expert.1, "{entry:?}");
            let capability = entry.capability.expect("an entry of the build is for one capability");
            assert!(crate::backend::cuda::tile::tiles(capability).contains(&entry.tile), "{entry:?}");
        }
    }
}
