//! The figures as tables.

use std::fmt::Write as _;

/// What is measured.
#[derive(Debug, Clone)]
pub struct Figure {
    pub name: String,
    pub unit: &'static str,
    pub higher_is_better: bool,
    /// CPU time or memory: a table of its own.
    pub cost: bool,
}

impl Figure {
    pub fn new(name: impl Into<String>, unit: &'static str, higher_is_better: bool) -> Self {
        Self {
            name: name.into(),
            unit,
            higher_is_better,
            cost: false,
        }
    }

    pub fn cost(name: impl Into<String>, unit: &'static str) -> Self {
        Self {
            cost: true,
            ..Self::new(name, unit, false)
        }
    }
}

/// A figure of all columns.
#[derive(Debug, Clone)]
pub struct Row {
    pub figure: Figure,
    /// For each column the value of each round. Round for round they belong together.
    pub values: Vec<Vec<f64>>,
    /// For each column why it could not be measured.
    pub failed: Vec<Option<String>>,
}

/// Median, least and greatest of some values.
#[derive(Debug, Clone, Copy)]
pub struct Spread {
    pub median: f64,
    pub least: f64,
    pub greatest: f64,
}

impl Spread {
    fn of(mut values: Vec<f64>) -> Option<Self> {
        let median = median(&mut values);
        let (least, greatest) = (*values.first()?, *values.last()?);
        (!median.is_nan()).then_some(Self {
            median,
            least,
            greatest,
        })
    }
}

impl Row {
    /// The ratios of a column to the first, round for round.
    pub fn ratio(&self, column: usize) -> Option<Spread> {
        let (base, values) = (self.values.first()?, self.values.get(column)?);
        Spread::of(
            base.iter()
                .zip(values)
                .map(|(base, value)| value / base)
                .collect(),
        )
    }

    /// The same, so that more is always better.
    pub fn better(&self, column: usize) -> Option<f64> {
        let ratio = self.ratio(column)?.median;
        let better = if self.figure.higher_is_better {
            ratio
        } else {
            1.0 / ratio
        };
        better.is_finite().then_some(better)
    }

    fn cell(&self, column: usize) -> String {
        if let Some(Some(why)) = self.failed.get(column) {
            // The measure that the cost belongs to says why.
            if self.figure.cost {
                return "**failed**".into();
            }
            return format!("**failed**: {}", why.replace('|', "/"));
        }
        let values = self.values.get(column).cloned().unwrap_or_default();
        let Some(value) = Spread::of(values) else {
            return String::new();
        };
        let value = rounded(value.median);
        match self.ratio(column) {
            Some(ratio) if column > 0 => {
                let Spread {
                    median,
                    least,
                    greatest,
                } = ratio;
                format!("**{median:.2}** ({least:.2} to {greatest:.2}) {value}")
            }
            _ => value,
        }
    }
}

/// The figures of one chain, each beside the first column's.
#[derive(Debug, Default)]
pub struct Section {
    pub title: String,
    pub columns: Vec<String>,
    pub rows: Vec<Row>,
    /// What could not be measured at all, and why.
    pub missing: Vec<(String, String)>,
    /// Facts without a counterpart in a relay.
    pub notes: Vec<String>,
}

/// NaN without values.
pub fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = |len: usize| values.get(len / 2).copied().unwrap_or(f64::NAN);
    f64::midpoint(middle(values.len().saturating_sub(1)), middle(values.len()))
}

pub fn markdown(sections: &[Section], about: &[String], notes: &[String]) -> String {
    let mut text = String::new();
    for line in about {
        let _ = writeln!(text, "{line}  ");
    }
    for note in notes {
        let _ = writeln!(text, "\n{note}");
    }
    for section in sections {
        let _ = writeln!(text, "\n### {}", section.title);
        for cost in [false, true] {
            table(&mut text, section, cost);
        }
        for note in &section.notes {
            let _ = writeln!(text, "\n{note}");
        }
    }
    text
}

fn table(text: &mut String, section: &Section, cost: bool) {
    let rows = || section.rows.iter().filter(|row| row.figure.cost == cost);
    if rows().next().is_none() {
        return;
    }
    let kind = if cost { "cost" } else { "measure" };
    let columns = &section.columns;
    let _ = writeln!(text, "\n| {kind} | {} |", columns.join(" | "));
    let _ = writeln!(text, "|---|{}", "---|".repeat(columns.len()));
    for row in rows() {
        let cells: Vec<String> = (0..columns.len()).map(|column| row.cell(column)).collect();
        let Figure { name, unit, .. } = &row.figure;
        let _ = writeln!(text, "| {name}, {unit} | {} |", cells.join(" | "));
    }
    for (name, why) in section.missing.iter().filter(|_| !cost) {
        let (why, rest) = (why.replace('|', "/"), " |".repeat(columns.len() - 1));
        let _ = writeln!(text, "| **{name}: NOT MEASURED** | {why} |{rest}");
    }
}

/// The ratios of the second column alone, on one line.
pub fn summary(sections: &[Section]) -> String {
    let sections = sections.iter().map(|section| {
        let rows = section.rows.iter().filter(|row| !row.figure.cost);
        let ratios = rows.filter_map(|row| {
            let ratio = row.ratio(1)?.median;
            Some(format!("{} {ratio:.2}", row.figure.name))
        });
        let ratios: Vec<String> = ratios.collect();
        format!("{}: {}", section.title, ratios.join("; "))
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
