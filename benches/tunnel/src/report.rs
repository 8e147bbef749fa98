//! The figures as a table.

use std::fmt::Write as _;

/// One measure of one chain beside the bare relays.
#[derive(Debug, Clone)]
pub struct Row {
    pub measure: &'static str,
    pub unit: &'static str,
    pub higher_is_better: bool,
    /// Pairs of (bare, ours), measured one after the other.
    pub pairs: Vec<(f64, f64)>,
}

impl Row {
    /// Median, least and greatest of the pairs' ratios.
    pub fn ratio(&self) -> (f64, f64, f64) {
        let mut ratios: Vec<f64> = self.pairs.iter().map(|(bare, ours)| ours / bare).collect();
        ratios.sort_by(f64::total_cmp);
        let ends = (ratios.first(), ratios.last());
        let (Some(least), Some(greatest)) = ends else {
            return (f64::NAN, f64::NAN, f64::NAN);
        };
        (median(&mut ratios.clone()), *least, *greatest)
    }

    fn values(&self) -> (f64, f64) {
        let (mut bare, mut ours): (Vec<f64>, Vec<f64>) = self.pairs.iter().copied().unzip();
        (median(&mut bare), median(&mut ours))
    }
}

/// The rows of one chain.
#[derive(Debug)]
pub struct Section {
    pub chain: String,
    pub beside: String,
    /// What the two values of a pair are called.
    pub columns: [&'static str; 2],
    pub rows: Vec<Row>,
    /// Facts without a counterpart in a relay.
    pub notes: Vec<String>,
}

pub fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

pub fn markdown(sections: &[Section], about: &[String]) -> String {
    let mut text = String::new();
    for line in about {
        let _ = writeln!(text, "{line}  ");
    }
    for section in sections {
        let _ = writeln!(text, "\n### {} beside {}\n", section.chain, section.beside);
        let [first, second] = section.columns;
        let _ = writeln!(
            text,
            "| measure | {first} | {second} | ratio | least to greatest |\n|---|---|---|---|---|"
        );
        for row in &section.rows {
            let ((bare, ours), (ratio, least, greatest)) = (row.values(), row.ratio());
            let (bare, ours) = (rounded(bare), rounded(ours));
            let (measure, unit) = (row.measure, row.unit);
            let _ = writeln!(
                text,
                "| {measure}, {unit} | {bare} | {ours} | **{ratio:.2}** | \
                 {least:.2} to {greatest:.2} |"
            );
        }
        for note in &section.notes {
            let _ = writeln!(text, "\n{note}");
        }
    }
    text
}

/// The ratios alone, on one line.
pub fn summary(sections: &[Section]) -> String {
    let sections = sections.iter().map(|section| {
        let ratios = section.rows.iter().map(|row| {
            let (ratio, _, _) = row.ratio();
            format!("{} {ratio:.2}", row.measure)
        });
        let ratios: Vec<String> = ratios.collect();
        format!("{}: {}", section.chain, ratios.join("; "))
    });
    let sections: Vec<String> = sections.collect();
    format!("ratios: {}", sections.join(" | "))
}

fn rounded(value: f64) -> String {
    if value < 10.0 {
        format!("{value:.2}")
    } else {
        format!("{value:.0}")
    }
}
