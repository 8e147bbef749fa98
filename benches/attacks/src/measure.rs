//! One attack: a chain of programs, one client that behaves, and thousands of hostile connections.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tunnel_bench_support::{await_port, free_port, resident};

use crate::attacks::{Attack, Place};
use crate::client::{AFTER, ATTACKED, Client, EVERY, IDLE, SETTLING, Seen, quantile, works_within};
use crate::programs::{self, Ports, Program, Programs, Starter};
use crate::services::{self, Crowd, SilentPort};
use crate::swarm::{Field, Tally};

/// Descriptors that may be open after an attack in addition to those before: those of the client
/// vary.
const SLACK: u64 = 16;

/// Time until every descriptor has to be closed.
const BACK_WITHIN: Duration = Duration::from_secs(45);

/// Time from then until memory has to be free.
const FREED_WITHIN: Duration = Duration::from_secs(20);

/// Time for the first hostile connection.
const BEGUN_WITHIN: Duration = Duration::from_secs(60);

/// Time for a program to serve again after the hostile server was replaced by a good one.
const WELL_AGAIN_WITHIN: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, Copy)]
pub struct Plan {
    pub connections: usize,
    pub addresses: usize,
    pub idle: Duration,
    /// From the first hostile connection on, before the attack is measured.
    pub settle: Duration,
    pub attack: Duration,
    /// How long memory is watched after the last descriptor is closed.
    pub after: Duration,
    /// The programs' --memory in MiB.
    pub memory: u64,
}

/// Bytes of one program at which an attack is stopped, to protect the machine.
const STOP_AT: u64 = 5 << 30;

/// Bytes that a program may use beside its bound, and keep after an attack: code, tables, memory
/// kept by the allocator.
const BASE: u64 = 48 << 20;

/// The same for each hostile connection: a read and a write buffer of the WebSocket, of up to 128
/// KiB each.
const EACH: u64 = 256 << 10;

impl Plan {
    /// Bytes by which a program may grow.
    pub fn budget(&self) -> u64 {
        (self.memory << 20) + BASE + self.connections as u64 * EACH
    }
}

/// Before, at most, and after.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Course {
    pub before: u64,
    pub peak: u64,
    pub after: u64,
}

impl Course {
    fn is_back(&self, slack: u64) -> bool {
        self.after <= self.before + slack
    }
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Role {
    pub memory: Course,
    pub descriptors: Course,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Outcome {
    pub name: String,
    pub commit: String,
    pub connections: usize,
    pub tally: Tally,
    /// Milliseconds of a round trip: p50 and p99.
    pub idle: [f64; 2],
    /// Meaningless if the client is behind the hostile server.
    pub attacked: Option<[f64; 2]>,
    /// More about the client, idle and attacked. Older results have none of it.
    #[serde(default)]
    pub more: Option<[More; 2]>,
    pub trips_failed: u32,
    /// New connections through the same forward, and new clients: how many of how many succeeded.
    pub new_connections: [u32; 2],
    pub new_clients: [u32; 2],
    pub roles: BTreeMap<String, Role>,
    /// Seconds until descriptors were back, and until an attacked program served again.
    pub back_after: Option<f64>,
    /// Violations of the requirements.
    pub faults: Vec<String>,
}

/// In milliseconds.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct More {
    /// Mean of the round trips.
    pub trip: Option<f64>,
    /// What `forward` and the agent waited for a processor, divided by the number of round trips.
    pub waited: f64,
    /// p99 of new connections.
    pub connection: Option<f64>,
}

impl More {
    /// `waited` in all, in a phase of this length.
    fn new(seen: &Seen, waited: f64, length: Duration) -> Self {
        let mean = seen.trips.iter().sum::<f64>() / seen.trips.len() as f64;
        let connection = quantile(&seen.connections, 0.99);
        Self {
            trip: mean.is_finite().then_some(mean),
            waited: waited / length.div_duration_f64(EVERY),
            connection: connection.is_finite().then_some(connection),
        }
    }
}

pub fn measure(
    attack: &'static Attack,
    programs: &Programs,
    plan: Plan,
    commit: &str,
) -> Result<Outcome, String> {
    let told = |error: std::io::Error| error.to_string();
    let logs = std::env::temp_dir().join(format!("attacks-{}-{}", std::process::id(), attack.name));
    fs::create_dir_all(&logs).map_err(told)?;
    let _logs = Folder(&logs);

    let (host, runner, hostile) = (free_port()?, free_port()?, free_port()?);
    let crowd = Crowd::start(runner).map_err(told)?;
    let silent = SilentPort::new().map_err(told)?;
    let (_refusing, refusing) = services::refusing().map_err(told)?;
    let echo = services::echo().map_err(told)?;
    let mut ports = Ports {
        host,
        runner,
        hostile,
        host_for_forward: host,
        runner_for_agent: runner,
        api: crowd.api,
    };
    let good = match attack.place {
        Place::Host => {
            ports.host_for_forward = crowd.turncoat;
            host
        }
        Place::RunnerOfAgent => {
            ports.runner_for_agent = crowd.turncoat;
            runner
        }
        _ => runner,
    };
    crowd.turn_to(good);
    let starter = Starter {
        programs,
        logs: &logs,
        flavour: attack.flavour,
        ports,
        memory: plan.memory,
    };
    let mut chain = starter.chain(echo)?;
    let port = chain[0].local_port(Duration::from_secs(1))?;
    let field = Field {
        host,
        runner,
        hostile,
        silent: silent.port,
        refusing,
        flood: crowd.flood,
        connections: plan.connections,
        addresses: plan.addresses,
        seconds: (BEGUN_WITHIN + plan.settle + plan.attack).as_secs() + 5,
    };
    let turned = matches!(attack.place, Place::Host | Place::RunnerOfAgent);
    let client = Client::new(port);
    let watch = Watch::new(&chain);
    let mut tally = Tally::default();
    let mut waits = Waits::new(&chain);
    let mut laps = Vec::new();
    let mut faults = Vec::new();
    let watched = |work: &mut dyn FnMut() -> Result<Option<f64>, String>| {
        thread::scope(|scope| {
            scope.spawn(|| watch.run());
            let done = client.beside(&starter, echo, !turned, work);
            watch.over.store(true, Relaxed);
            done
        })
    };
    let back_after = watched(&mut || {
        sleep(plan.idle);
        watch.note_before();
        client.begin(SETTLING);
        laps.push(waits.lap());
        let mut command = when_idle();
        command.arg(std::env::current_exe().map_err(told)?);
        let words = serde_json::to_string(&field).map_err(|error| error.to_string())?;
        command.args(["attack", attack.name, &words]);
        let log = logs.join("attackers.log");
        let attackers = Program::start("attackers", log, &mut command, false)?;
        if turned {
            await_port(hostile, "the attacker")?;
            crowd.turn_to(hostile);
        }
        let counted = || serde_json::from_str(&attackers.last_line()?).ok();
        let attack_for = |length, until: fn(Tally) -> bool| {
            let end = Instant::now() + length;
            while Instant::now() < end && watch.most() < STOP_AT && !counted().is_some_and(until) {
                sleep(Duration::from_millis(50));
            }
        };
        // They compute only when nobody else does, so they may begin late.
        attack_for(BEGUN_WITHIN, |tally| tally.opened > 0);
        attack_for(plan.settle, |_| false);
        waits.lap();
        client.begin(ATTACKED);
        attack_for(plan.attack, |_| false);
        tally =
            counted().ok_or_else(|| format!("the attackers do not work: {}", attackers.said()))?;
        client.begin(AFTER);
        laps.push(waits.lap());
        // The programs close thousands of connections now.
        drop(attackers);
        let ended = Instant::now();
        if turned {
            crowd.turn_to(good);
        }
        let well = works_within(port, WELL_AGAIN_WITHIN);
        if well.is_none() {
            faults.push("no connection works again".into());
        }
        let back = watch.back(ended);
        sleep(plan.after);
        watch.freed();
        if turned { Ok(back.and(well)) } else { Ok(back) }
    })?;

    let (idle, settling, attacked) = (
        client.seen(IDLE),
        client.seen(SETTLING),
        client.seen(ATTACKED),
    );
    let trips_failed = settling.trips_failed + attacked.trips_failed;
    let first_failure = settling.first_failure.or(attacked.first_failure.clone());
    let roles = watch.roles();
    if back_after.is_none() && faults.is_empty() {
        let left = roles.iter().map(|(name, role)| {
            let counts = role.descriptors;
            format!("{name} {} of {}", counts.after, counts.before)
        });
        let left: Vec<String> = left.collect();
        faults.push(format!("descriptors are not back: {}", left.join(", ")));
    }
    if tally.opened == 0 {
        faults.push("the attackers opened nothing".into());
    }
    for program in &mut chain {
        if program.ended() {
            faults.push(format!("{} ended", program.name));
        }
    }
    for (name, role) in &roles {
        let more = role.memory.peak.saturating_sub(role.memory.before);
        if more > plan.budget() {
            faults.push(format!("{name} took {} MiB", more >> 20));
        }
        if !role.memory.is_back(BASE) {
            let Course { before, after, .. } = role.memory;
            let (before, after) = (before >> 20, after >> 20);
            faults.push(format!(
                "{name} keeps {after} MiB of memory, {before} before"
            ));
        }
    }
    let counts = |came: &[f64], failed: u32| {
        let came = u32::try_from(came.len()).unwrap_or(u32::MAX);
        [came, came + failed]
    };
    let new_connections = counts(&attacked.connections, attacked.connections_failed);
    let new_clients = counts(&attacked.clients, attacked.clients_failed);
    if !turned {
        if trips_failed > 0 || attacked.trips.is_empty() {
            faults.push("a round trip failed".into());
        }
        for (what, [came, tried]) in [("connections", new_connections), ("clients", new_clients)] {
            if came * 2 < tried {
                faults.push(format!("{} of {tried} new {what} failed", tried - came));
            }
        }
        if let (Some(first), false) = (&first_failure, faults.is_empty()) {
            faults.push(format!("first failure: {first}"));
        }
    }
    let both = |trips: &[f64]| [quantile(trips, 0.5), quantile(trips, 0.99)];
    let more = match laps[..] {
        [one, two] if !turned => Some([
            More::new(&idle, one.0, one.1),
            More::new(&attacked, two.0, two.1),
        ]),
        _ => None,
    };
    Ok(Outcome {
        name: attack.name.into(),
        commit: commit.into(),
        connections: plan.connections,
        tally,
        idle: both(&idle.trips),
        attacked: (!turned && !attacked.trips.is_empty()).then(|| both(&attacked.trips)),
        more,
        trips_failed,
        new_connections,
        new_clients,
        roles,
        back_after,
        faults,
    })
}

/// A command to run another when no other process wants the processor. Attackers would be on other
/// machines, so their computing must not delay the client that behaves.
fn when_idle() -> Command {
    let mut idle = Command::new("chrt");
    idle.args(["--idle", "0"]);
    let mut probe = Command::new("chrt");
    probe.args(["--idle", "0", "true"]).stderr(Stdio::null());
    if probe.status().is_ok_and(|status| status.success()) {
        return idle;
    }
    let mut nice = Command::new("nice");
    nice.args(["-n", "19"]);
    nice
}

/// Measures how long `forward` and the agent wait for a processor.
struct Waits {
    ids: Vec<u32>,
    /// In all, and when.
    last: (f64, Instant),
}

impl Waits {
    fn new(chain: &[Program]) -> Self {
        let own = chain
            .iter()
            .filter(|role| ["forward", "agent"].contains(&role.name));
        let mut waits = Self {
            ids: own.map(Program::id).collect(),
            last: (0.0, Instant::now()),
        };
        waits.lap();
        waits
    }

    /// Milliseconds of waiting since the last call, and the time since then.
    fn lap(&mut self) -> (f64, Duration) {
        let waited = self.ids.iter().map(|id| programs::waited(*id)).sum();
        let now = (waited, Instant::now());
        let before = std::mem::replace(&mut self.last, now);
        (now.0 - before.0, now.1 - before.1)
    }
}

struct Folder<'a>(&'a Path);

impl Drop for Folder<'_> {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(self.0);
    }
}

/// Memory and descriptors of each role, sampled ten times a second.
struct Watch {
    ids: Vec<(&'static str, u32)>,
    roles: Mutex<Vec<Role>>,
    over: AtomicBool,
}

impl Watch {
    fn new(chain: &[Program]) -> Self {
        let ids: Vec<_> = chain.iter().map(|role| (role.name, role.id())).collect();
        Self {
            roles: Mutex::new(vec![Role::default(); ids.len()]),
            ids,
            over: AtomicBool::new(false),
        }
    }

    fn run(&self) {
        while !self.over.load(Relaxed) {
            self.look(|course, now| course.peak = course.peak.max(now));
            sleep(Duration::from_millis(100));
        }
    }

    fn note_before(&self) {
        self.look(|course, now| {
            *course = Course {
                before: now,
                peak: now,
                after: now,
            }
        });
    }

    fn note_after(&self) {
        self.look(|course, now| course.after = now);
    }

    /// Bytes of the role with most.
    fn most(&self) -> u64 {
        let roles = self.ids.iter().map(|(_, id)| resident(*id));
        roles.max().unwrap_or(0)
    }

    /// Seconds until every role has as many descriptors as before.
    fn back(&self, since: Instant) -> Option<f64> {
        self.within(BACK_WITHIN, since, |role| role.descriptors.is_back(SLACK))
    }

    /// Waits until every role has as little memory as before, and notes what it has.
    fn freed(&self) {
        self.within(FREED_WITHIN, Instant::now(), |role| {
            role.memory.is_back(BASE)
        });
    }

    /// Seconds until this holds for every role.
    fn within(&self, limit: Duration, since: Instant, holds: fn(&Role) -> bool) -> Option<f64> {
        while since.elapsed() < limit {
            self.note_after();
            if self.roles.lock().is_ok_and(|roles| roles.iter().all(holds)) {
                return Some(since.elapsed().as_secs_f64());
            }
            sleep(Duration::from_millis(100));
        }
        None
    }

    fn look(&self, mut note: impl FnMut(&mut Course, u64)) {
        let Ok(mut roles) = self.roles.lock() else {
            return;
        };
        for ((_, id), role) in self.ids.iter().zip(roles.iter_mut()) {
            note(&mut role.memory, resident(*id));
            note(&mut role.descriptors, programs::descriptors(*id));
        }
    }

    fn roles(&self) -> BTreeMap<String, Role> {
        let roles = self.roles.lock().map(|roles| roles.clone());
        let names = self.ids.iter().map(|(name, _)| (*name).to_owned());
        names.zip(roles.unwrap_or_default()).collect()
    }
}
