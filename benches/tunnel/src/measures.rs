//! What is measured, and the rounds in which all columns take turns.

use std::io;
use std::thread;
use std::time::Duration;

use crate::Sizes;
use crate::chains::Chain;
use crate::load;
use crate::report::{Figure, Row};

/// The load on one chain and its figures.
type Work<'a> = Box<dyn Fn(&Chain) -> io::Result<Vec<f64>> + 'a>;

/// Figures that come from the same load.
pub struct Measure<'a> {
    pub figures: Vec<Figure>,
    pub work: Work<'a>,
    /// Rounds at most, because one takes long.
    pub most: usize,
}

impl<'a> Measure<'a> {
    fn one(
        name: impl Into<String>,
        unit: &'static str,
        higher_is_better: bool,
        work: impl Fn(u16) -> io::Result<f64> + 'a,
    ) -> Self {
        Self {
            figures: vec![Figure::new(name, unit, higher_is_better)],
            work: Box::new(move |chain| Ok(vec![work(chain.port)?])),
            most: usize::MAX,
        }
    }
}

/// Rounds of what would take too long with all.
pub const FEW: usize = 3;

/// Before each measure of a chain: what the one before has left is closed and freed meanwhile.
const SETTLE: Duration = Duration::from_millis(300);

/// A peer that failed as often is left alone.
const ENOUGH: u8 = 3;

/// Takes each measure of every chain in turn. Each round begins with another chain, because the
/// first may find the machine different from the last.
///
/// # Errors
/// Relays or our programs failed, or a transfer through them was damaged.
pub fn take(chains: &[Chain], measure: &Measure<'_>, runs: usize) -> Result<Vec<Row>, String> {
    let figures = &measure.figures;
    let name = &figures[0].name;
    let empty = |figure: &Figure| Row {
        figure: figure.clone(),
        values: vec![Vec::new(); chains.len()],
        failed: vec![None; chains.len()],
    };
    let mut rows: Vec<Row> = figures.iter().map(empty).collect();
    for round in 0..runs.min(measure.most) {
        for turn in 0..chains.len() {
            let column = (round + turn) % chains.len();
            let chain = &chains[column];
            if rows[0].failed[column].is_some() {
                continue;
            }
            thread::sleep(SETTLE);
            let taken = if chain.failures.get() < ENOUGH {
                (measure.work)(chain)
            } else {
                Err(io::Error::other("it had failed before"))
            };
            match taken {
                Ok(values) => {
                    for (row, value) in rows.iter_mut().zip(values) {
                        row.values[column].push(value);
                    }
                }
                Err(error) if chain.peer => {
                    eprintln!("{name} through {} FAILED: {error}", chain.name);
                    chain.failures.set(chain.failures.get().saturating_add(1));
                    for row in &mut rows {
                        row.failed[column] = Some(error.to_string());
                    }
                }
                Err(error) => return Err(format!("{name} through {}: {error}", chain.name)),
            }
        }
    }
    eprintln!("{name}: done");
    Ok(rows)
}

/// Throughput over that many connections, and CPU seconds per GiB of each role and of the service.
fn transfer<'a>(
    (connections, up): (usize, bool),
    mib: u64,
    roles: &'a [&'static str],
    service: &'a Chain,
) -> Measure<'a> {
    let name = title(connections, up);
    let mut figures = vec![Figure::new(name.as_str(), "MiB/s", true)];
    let roles_and_service = roles.iter().chain(&["service"]);
    figures.extend(
        roles_and_service.map(|role| Figure::cost(format!("CPU of the {role}, {name}"), "s/GiB")),
    );
    let work = move |chain: &Chain| {
        let used = || {
            let roles = roles.iter().map(|role| chain.cpu_seconds(role));
            let all = roles.chain([service.cpu_seconds("service")]);
            all.collect::<Vec<f64>>()
        };
        let before = used();
        let mut values = vec![rate(chain.port, connections, up, mib)?];
        let after = used().into_iter().zip(before);
        values.extend(after.map(|(after, before)| (after - before) * 1024.0 / mib as f64));
        Ok(values)
    };
    Measure {
        figures,
        work: Box::new(work),
        most: usize::MAX,
    }
}

fn rate(port: u16, connections: usize, up: bool, mib: u64) -> io::Result<f64> {
    if up {
        load::upload(port, connections, mib)
    } else {
        load::download(port, connections, mib)
    }
}

fn title(connections: usize, up: bool) -> String {
    let direction = if up { "up" } else { "down" };
    match connections {
        1 => format!("{direction}, 1 connection"),
        1_000.. => format!("{direction}, {},000 connections", connections / 1_000),
        _ => format!("{direction}, {connections} connections"),
    }
}

/// Throughput without the costs.
fn plain<'a>(connections: usize, up: bool, mib: u64) -> Measure<'a> {
    Measure::one(title(connections, up), "MiB/s", true, move |port| {
        rate(port, connections, up, mib)
    })
}

/// Many connections that end soon, and the most memory that they take in each role.
fn crowd<'a>(up: bool, mib: u64, roles: &'a [&'static str]) -> Measure<'a> {
    const CONNECTIONS: usize = 1_000;
    let name = title(CONNECTIONS, up);
    let mut figures = vec![Figure::new(name.as_str(), "MiB/s", true)];
    figures.extend(
        roles
            .iter()
            .map(|role| Figure::cost(format!("peak memory of the {role}, {name}"), "MB")),
    );
    let work = move |chain: &Chain| {
        chain.forget_peak();
        let mut values = vec![rate(chain.port, CONNECTIONS, up, mib)?];
        values.extend(roles.iter().map(|role| chain.peak(role) / 1e6));
        Ok(values)
    };
    Measure {
        figures,
        work: Box::new(work),
        most: FEW,
    }
}

/// Memory while connections wait. Not of the relays, which have a thread for each.
pub fn idle<'a>(count: usize, roles: &'a [&'static str]) -> Measure<'a> {
    let each = |role: &&str| {
        let memory = format!("memory of the {role}, {count} idle connections");
        [
            Figure::cost(memory, "MB"),
            Figure::cost(format!("each idle connection in the {role}"), "KB"),
        ]
    };
    let figures = roles.iter().flat_map(each).collect();
    let work = move |chain: &Chain| {
        if chain.is_relays() {
            return Ok(vec![f64::NAN; roles.len() * 2]);
        }
        let memory = || roles.iter().map(|role| chain.memory(role));
        let before: Vec<f64> = memory().collect();
        let held = load::idle(chain.port, count)?;
        let both = memory().zip(before).flat_map(|(after, before)| {
            [after / 1e6, (after - before).max(0.0) / count as f64 / 1e3]
        });
        let values = both.collect();
        drop(held);
        Ok(values)
    };
    Measure {
        figures,
        work: Box::new(work),
        most: 1,
    }
}

/// Round trips beside that many downloads, and how fast these are.
fn beside<'a>(bulk: usize, time: Duration, pinging: usize) -> Measure<'a> {
    let name = match bulk {
        1 => "round trip beside bulk".to_owned(),
        _ => format!("round trip beside {bulk} bulk streams"),
    };
    let figure = |part: &str| Figure::new(format!("{name}, {part}"), "µs", false);
    Measure {
        figures: vec![
            figure("p50"),
            figure("p99"),
            Figure::new(format!("{name}, the bulk"), "MiB/s", true),
        ],
        work: Box::new(move |chain| {
            let (times, rate) = load::round_trips_beside(chain.port, bulk, time, pinging)?;
            Ok(vec![
                load::quantile(&times, 0.5),
                load::quantile(&times, 0.99),
                rate,
            ])
        }),
        most: usize::MAX,
    }
}

fn round_trip<'a>(count: usize) -> Measure<'a> {
    Measure::one("round trip of 64 B, p50", "µs", false, move |port| {
        Ok(load::quantile(&load::round_trips(port, count)?, 0.5))
    })
}

/// On loopback. `brief`: with half the bytes, and without the costs and the crowd.
pub fn near<'a>(
    sizes: &Sizes,
    roles: &'a [&'static str],
    service: &'a Chain,
    brief: bool,
) -> Vec<Measure<'a>> {
    let mut measures = Vec::new();
    let mib = if brief { sizes.mib / 2 } else { sizes.mib };
    for connections in [1, 4, 100] {
        for up in [true, false] {
            measures.push(if brief || connections == 4 {
                plain(connections, up, mib)
            } else {
                transfer((connections, up), mib, roles, service)
            });
        }
    }
    if !brief {
        measures.extend([true, false].map(|up| crowd(up, sizes.crowd_mib, roles)));
    }
    let connections = sizes.connections;
    measures.extend([
        Measure::one("echo of 100 x 256 KiB", "MiB/s", true, |port| {
            load::echo(port, 100, 256, false)
        }),
        Measure::one("the same, input ends first", "MiB/s", true, |port| {
            load::echo(port, 100, 256, true)
        }),
        round_trip(sizes.round_trips),
        beside(1, sizes.beside, 1),
        beside(100, sizes.beside, 1),
        Measure::one("connections", "per second", true, move |port| {
            load::connections(port, connections)
        }),
    ]);
    measures
}

/// Over a path. The round trips beside bulk are of several connections, because each takes long.
pub fn far<'a>(sizes: &Sizes) -> Vec<Measure<'a>> {
    let mib = sizes.far_mib;
    let mut measures = Vec::new();
    for connections in [1, 16] {
        measures.extend([true, false].map(|up| plain(connections, up, mib)));
    }
    measures.extend([round_trip(20), beside(1, sizes.far_beside, 8)]);
    measures
}

/// For the price of resumption.
pub fn resumed_near<'a>(
    sizes: &Sizes,
    roles: &'a [&'static str],
    service: &'a Chain,
) -> Vec<Measure<'a>> {
    let ways = [(1, true), (1, false), (16, true), (16, false)];
    let transfers = ways.map(|way| transfer(way, 2 * sizes.mib, roles, service));
    let mut measures = Vec::from(transfers);
    measures.push(round_trip(sizes.round_trips));
    measures
}

/// The same over a long path.
pub fn resumed_far<'a>(sizes: &Sizes) -> Vec<Measure<'a>> {
    let ways = [(1, true), (1, false), (16, true), (16, false)];
    let transfers = ways.map(|(connections, up)| plain(connections, up, sizes.mib));
    let mut measures = Vec::from(transfers);
    measures.push(round_trip(20));
    measures
}
