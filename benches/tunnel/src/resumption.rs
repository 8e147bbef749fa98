//! What resumption costs: the same chain with and without it, in the same run.

use std::path::Path as Folder;
use std::time::Duration;

use crate::Sizes;
use crate::chains::{self, Chain, Way};
use crate::measures;
use crate::report::Section;
use crate::slow::Path;

/// The long path between client and host.
const LONG: Path = Path {
    round_trip: Duration::from_millis(100),
    mbit: 1000,
    stall_mib: 0,
};

/// Both chains on loopback, then, unless that is all, with a long path between client and host.
///
/// # Errors
/// A chain does not start, or a transfer was damaged.
pub fn price(
    folder: &Folder,
    service: &Chain,
    sizes: &Sizes,
    loopback: bool,
) -> Result<Vec<Section>, String> {
    let roles = chains::roles(5);
    let mut sections = Vec::new();
    let places = [(None, "loopback"), (Some(LONG), "100 ms, 1 Gbit/s")];
    for (link, place) in places
        .into_iter()
        .filter(|(link, _)| !(loopback && link.is_some()))
    {
        let chain = |resume| chains::programs(folder, 5, service.port, Way { resume, link });
        let chains = [chain(false)?, chain(true)?];
        let measures = if link.is_some() {
            measures::resumed_far(sizes)
        } else {
            measures::resumed_near(sizes, roles, service)
        };
        let mut section = Section {
            title: format!("resumption off and on, {place}"),
            columns: vec!["off".into(), "on".into()],
            ..Section::default()
        };
        for measure in &measures {
            // The first transfers grow buffers.
            measures::take(&chains, measure, 1)?;
            section
                .rows
                .extend(measures::take(&chains, measure, sizes.runs)?);
        }
        sections.push(section);
    }
    Ok(sections)
}
