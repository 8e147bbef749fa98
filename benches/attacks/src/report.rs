//! The figures as a table, and as a file to compare later runs with.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::attacks::Attack;
use crate::measure::{More, Outcome};

#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Results {
    outcomes: Vec<Outcome>,
}

impl Results {
    /// Empty if there is no such file.
    pub fn read(file: &Path) -> Result<Self, String> {
        match fs::read(file) {
            Ok(text) => serde_json::from_slice(&text)
                .map_err(|error| format!("{} is damaged: {error}", file.display())),
            Err(_) => Ok(Self::default()),
        }
    }

    pub fn write(&self, folder: &Path, file: &str) -> Result<(), String> {
        let text = serde_json::to_string_pretty(self).map_err(|error| error.to_string())?;
        fs::create_dir_all(folder)
            .and_then(|()| fs::write(folder.join(file), text + "\n"))
            .map_err(|error| format!("cannot write to {}: {error}", folder.display()))
    }

    /// Replaces an older one of its name.
    pub fn put(&mut self, outcome: Outcome) {
        self.outcomes.retain(|other| other.name != outcome.name);
        self.outcomes.push(outcome);
    }

    fn of(&self, name: &str) -> Option<&Outcome> {
        self.outcomes.iter().find(|outcome| outcome.name == name)
    }

    fn commits(&self) -> String {
        let mut commits: Vec<&str> = self.outcomes.iter().map(|one| &*one.commit).collect();
        commits.sort_unstable();
        commits.dedup();
        commits.join(", ")
    }
}

/// One attack on one line.
pub fn line(outcome: &Outcome) -> String {
    let verdict = if outcome.faults.is_empty() {
        "ok  "
    } else {
        "FAIL"
    };
    format!("{verdict} {:24} {}", outcome.name, facts(outcome, " | "))
}

pub fn markdown(attacks: &[Attack], before: &Results, after: &Results) -> String {
    let mut text = format!(
        "Before: {}. After: {}.\n\n| attack | before | after |\n|---|---|---|\n",
        before.commits(),
        after.commits()
    );
    for attack in attacks {
        let cell = |results: &Results| match results.of(attack.name) {
            Some(outcome) if outcome.faults.is_empty() => facts(outcome, "<br>"),
            Some(outcome) => format!("**FAILED**<br>{}", facts(outcome, "<br>")),
            None => "not measured".into(),
        };
        let _ = writeln!(
            text,
            "| `{}`: {} | {} | {} |",
            attack.name,
            attack.what,
            cell(before),
            cell(after)
        );
    }
    text
}

fn facts(outcome: &Outcome, between: &str) -> String {
    let mut facts = vec![format!(
        "{} held at most, {} opened, {} MiB sent",
        outcome.tally.most_held,
        outcome.tally.opened,
        outcome.tally.sent >> 20
    )];
    let [_, idle] = outcome.idle;
    if let Some([_, p99]) = outcome.attacked {
        let ratio = p99 / idle;
        facts.push(format!(
            "p99 {idle:.1} to {p99:.1} ms ({ratio:.1} times), {} broken",
            outcome.trips_failed
        ));
        let ([came, tried], [new, asked]) = (outcome.new_connections, outcome.new_clients);
        let mut connections = format!("new connections {came} of {tried}");
        if let Some([idle, attacked]) = outcome.more {
            let pair = |part: fn(More) -> Option<f64>| {
                let [idle, attacked] = [idle, attacked].map(|more| match part(more) {
                    Some(milliseconds) => format!("{milliseconds:.2}"),
                    None => "none".into(),
                });
                format!("{idle} to {attacked} ms")
            };
            facts.push(format!(
                "mean {}, of it waits for a processor {}",
                pair(|more| more.trip),
                pair(|more| Some(more.waited))
            ));
            let _ = write!(connections, ", p99 {}", pair(|more| more.connection));
        }
        facts.push(format!("{connections}, new clients {new} of {asked}"));
    }
    let touched = outcome.roles.iter().filter(|(_, role)| {
        let grown = role.memory.peak.saturating_sub(role.memory.before) > 8 << 20;
        grown || role.descriptors.peak > role.descriptors.before + 50
    });
    for (name, role) in touched {
        let (memory, count) = (role.memory, role.descriptors);
        facts.push(format!(
            "{name} {}, {}, {} MiB; {}, {}, {} descriptors",
            memory.before >> 20,
            memory.peak >> 20,
            memory.after >> 20,
            count.before,
            count.peak,
            count.after
        ));
    }
    if let Some(back) = outcome.back_after {
        facts.push(format!("back after {back:.1} s"));
    }
    facts.extend(
        outcome
            .faults
            .iter()
            .map(|fault| fault.replace(['|', '\n'], " ")),
    );
    facts.join(between)
}
