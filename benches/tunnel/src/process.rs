//! CPU time and memory of a process, as Linux reports them.

use std::fs;

/// Clock ticks per second, the same on every Linux.
const TICKS: f64 = 100.0;

/// CPU seconds of the program, in user space and in the kernel.
pub fn cpu_seconds(id: u32) -> f64 {
    let text = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    // The name, in parentheses, may contain any byte.
    let after = text.rsplit_once(')').map_or("", |(_, after)| after);
    let fields: Vec<&str> = after.split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|text| text.parse::<f64>().ok());
    (ticks(11).unwrap_or(0.0) + ticks(12).unwrap_or(0.0)) / TICKS
}
