//! All that stands side by side: bare relays, the programs, and other tools.

use std::io;
use std::path::Path as Folder;
use std::time::Duration;

use crate::chains::{self, Chain, Way};
use crate::install::{Found, version};
use crate::measures::{self, FEW, Measure};
use crate::report::{Section, median};
use crate::slow::Path;
use crate::{Over, Sizes, load};

pub struct Field<'a> {
    pub programs: &'a Folder,
    pub service: &'a Chain,
    pub sizes: &'a Sizes,
    pub peers: &'a [Found],
}

impl Field<'_> {
    /// The chain with that many links on loopback, with the peers if it has three.
    pub fn near(&self, links: usize, algorithm: &str, brief: bool) -> Result<Section, String> {
        let roles = chains::roles(links);
        let mut side = self.side_by_side(links, None)?;
        let mut section = Section {
            title: format!("{}, {algorithm}", title(links)),
            ..Section::default()
        };
        if !brief {
            // OpenSSH takes the longer for a connection the more it has.
            let crowded = links == 3 && !self.peers.is_empty();
            let most = if crowded { 2_000 } else { usize::MAX };
            // First, while no role holds buffers from earlier measures.
            let idle = measures::idle(self.sizes.idle.min(most), roles);
            section.rows.extend(measures::take(&side.chains, &idle, 1)?);
            let udp = self.datagrams(&side.chains[1]);
            section.notes.push(udp?);
        }
        let measures = measures::near(self.sizes, roles, self.service, brief);
        let runs = self.sizes.runs.min(if brief { FEW } else { usize::MAX });
        side.measure(&measures, runs, &mut section)?;
        Ok(section)
    }

    /// The chain of three links with a path between client and server.
    pub fn far(&self, over: Over, algorithm: &str) -> Result<Section, String> {
        let (name, path) = match over {
            Over::Stalls => (
                "20 ms, 1 Gbit/s, stalls of 200 ms".to_owned(),
                Path {
                    round_trip: Duration::from_millis(20),
                    mbit: 1000,
                    stall_mib: 64,
                },
            ),
            _ => (
                format!("{} ms, 1 Gbit/s", self.sizes.far_round_trip.as_millis()),
                Path {
                    round_trip: self.sizes.far_round_trip,
                    mbit: 1000,
                    stall_mib: 0,
                },
            ),
        };
        let mut side = self.side_by_side(3, Some(path))?;
        let mut section = Section {
            title: format!("{}, {name}, {algorithm}", title(3)),
            ..Section::default()
        };
        let runs = self.sizes.runs.min(FEW);
        side.measure(&measures::far(self.sizes), runs, &mut section)?;
        Ok(section)
    }

    fn side_by_side(&self, links: usize, link: Option<Path>) -> Result<Side, String> {
        let service = self.service.port;
        let way = Way {
            link,
            ..Way::default()
        };
        let mut chains = vec![
            chains::relays(links - 1, service, link)?,
            chains::programs(self.programs, links, service, way)?,
        ];
        let mut missing = Vec::new();
        for Found { peer, program } in self.peers.iter().filter(|_| links == 3) {
            let started = program.clone();
            match started.and_then(|program| peer.start(&program, service, link)) {
                Ok(chain) => chains.push(chain),
                Err(why) => missing.push((peer.name.to_owned(), why)),
            }
        }
        Ok(Side { chains, missing })
    }

    /// Datagrams through the chain and straight to the service.
    fn datagrams(&self, ours: &Chain) -> Result<String, String> {
        // Not beside other measures: its tunnel has a place on one of the threads.
        let _client = chains::datagrams(self.programs, ours, self.service.port)?;
        let failed = |error: io::Error| format!("datagrams: {error}");
        let (count, runs) = (self.sizes.datagrams, self.sizes.runs);
        let (mut direct, mut through, mut lost) = (Vec::new(), Vec::new(), 0);
        for _ in 0..runs {
            let times = load::datagrams(self.service.port, count).map_err(failed)?;
            direct.push(load::quantile(&times, 0.5));
            let times = load::datagrams(ours.port, count).map_err(failed)?;
            lost += count as usize - times.len();
            through.push(load::quantile(&times, 0.5));
        }
        let all = count as usize * runs;
        let (direct, through) = (median(&mut direct), median(&mut through));
        Ok(format!(
            "UDP through ours: round trip of 64 B, p50, {through:.0} µs, straight to the service \
             {direct:.0} µs; {lost} of {all} lost."
        ))
    }
}

/// Chains that are measured in turn, relays first, then the programs.
struct Side {
    chains: Vec<Chain>,
    missing: Vec<(String, String)>,
}

impl Side {
    fn measure(
        &mut self,
        measures: &[Measure<'_>],
        runs: usize,
        section: &mut Section,
    ) -> Result<(), String> {
        eprintln!("{}", section.title);
        section.columns = self.chains.iter().map(|chain| chain.name.clone()).collect();
        section.missing = std::mem::take(&mut self.missing);
        for measure in measures {
            section
                .rows
                .extend(measures::take(&self.chains, measure, runs)?);
        }
        Ok(())
    }
}

fn title(links: usize) -> String {
    let roles: &[&str] = match links {
        3 => &["client", "runner"],
        _ => chains::roles(links),
    };
    format!("{links} links: {}", roles.join(" + "))
}

/// What the columns are.
pub fn notes(peers: &[Found]) -> Vec<String> {
    let mut notes = vec![
        "Each cell: **median of the ratios to the first column** (least to greatest), then the \
         median itself. Everything is TCP on loopback without TLS."
            .to_owned(),
    ];
    let found = peers.iter().filter_map(|found| {
        let program = found.program.as_ref().ok()?;
        let (name, version) = (found.peer.name, version(found.peer, program));
        Some(format!("- {name} ({version}): {}", found.peer.differs))
    });
    let lines: Vec<String> = found.collect();
    if !lines.is_empty() {
        notes.push(format!(
            "- ours: multiplexed, frames are masked\n{}",
            lines.join("\n")
        ));
    }
    notes
}
