//! The ratios as a chart. Bars to the right of the line are better than bare relays for every
//! measure.

use std::fmt::Write as _;

use crate::peers;
use crate::report::{Row, Section};

const WIDTH: f64 = 760.0;
const LABEL: f64 = 270.0;
/// Height of one tool's bar, and the space between measures.
const BAR: f64 = 9.0;
const GAP: f64 = 9.0;
/// Right edge: as many times as good as the relays. Longer bars are cut and labelled with their
/// value.
const MOST: f64 = 2.5;
const OURS: &str = "#1b7f5c";
/// In the order of the peers.
const OTHERS: [&str; 4] = ["#c2762b", "#7a5aa6", "#4a7fb5", "#a3a3a3"];

/// `about`: lines under the title.
pub fn svg(sections: &[Section], about: &[String]) -> String {
    let head = 64.0 + 16.0 * about.len() as f64;
    let heights = sections.iter().map(height);
    let height = head + heights.sum::<f64>();
    let mut text = format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}"
  font-family="sans-serif" font-size="12">
<rect width="{WIDTH}" height="{height}" fill="#fff"/>
<text x="16" y="24" font-size="15"
  font-weight="bold">Beside bare TCP relays: the line is as good, longer is better</text>
"##
    );
    for (line, about) in about.iter().enumerate() {
        let (y, about) = (44 + 16 * line, escaped(about));
        let _ = writeln!(
            text,
            r##"<text x="16" y="{y}" fill="#666" font-size="11">{about}</text>"##
        );
    }
    legend(&mut text, sections, head - 14.0);
    let mut y = head;
    for section in sections {
        let title = escaped(&section.title);
        let _ = writeln!(
            text,
            r##"<text x="16" y="{}" font-weight="bold">{title}</text>"##,
            y + 18.0
        );
        let mut at = y + 30.0;
        for row in shown(section) {
            measure(&mut text, row, section, at);
            at += row_height(section);
        }
        let one = x(1.0);
        let _ = writeln!(
            text,
            r##"<line x1="{one:.1}" x2="{one:.1}" y1="{}" y2="{}" stroke="#333"
  stroke-dasharray="3 3"/>"##,
            y + 26.0,
            at - GAP + 4.0
        );
        y += self::height(section);
    }
    text.push_str("</svg>\n");
    text
}

/// The costs are in the tables alone.
fn shown(section: &Section) -> impl Iterator<Item = &Row> {
    section.rows.iter().filter(|row| !row.figure.cost)
}

fn row_height(section: &Section) -> f64 {
    BAR * (section.columns.len() - 1) as f64 + GAP
}

fn height(section: &Section) -> f64 {
    40.0 + shown(section).count() as f64 * row_height(section)
}

fn x(better: f64) -> f64 {
    LABEL + better.min(MOST) * (WIDTH - LABEL - 50.0) / MOST
}

fn colour(name: &str) -> &'static str {
    let peers = peers::ALL.iter().zip(OTHERS);
    let mut colours = peers.filter(|(peer, _)| peer.name == name);
    colours.next().map_or(OURS, |(_, colour)| colour)
}

/// The columns of the widest section.
fn legend(text: &mut String, sections: &[Section], y: f64) {
    let columns = sections.iter().map(|section| &section.columns);
    let Some(columns) = columns.max_by_key(|columns| columns.len()) else {
        return;
    };
    for (column, name) in columns.iter().enumerate().skip(1) {
        let left = 16.0 + 110.0 * (column - 1) as f64;
        let _ = writeln!(
            text,
            r##"<rect x="{left}" y="{}" width="10" height="10" fill="{}"/>
<text x="{}" y="{y}">{}</text>"##,
            y - 9.0,
            colour(name),
            left + 15.0,
            escaped(name)
        );
    }
}

/// A bar for each column, or a word if that could not be measured.
fn measure(text: &mut String, row: &Row, section: &Section, top: f64) {
    let columns = section.columns.len();
    let middle = top + BAR * (columns - 1) as f64 / 2.0 + 4.0;
    let _ = writeln!(
        text,
        r##"<text x="{}" y="{middle}" text-anchor="end">{}</text>"##,
        LABEL - 8.0,
        escaped(&row.figure.name)
    );
    for column in 1..columns {
        let y = top + BAR * (column - 1) as f64;
        let (end, label) = match row.better(column) {
            Some(better) => (x(better), format!("{better:.2}")),
            None => (LABEL, "failed".into()),
        };
        let _ = writeln!(
            text,
            r##"<rect x="{LABEL}" y="{y}" width="{:.1}" height="{}" fill="{}"/>
<text x="{:.1}" y="{}" font-size="9">{label}</text>"##,
            end - LABEL,
            BAR - 1.0,
            colour(&section.columns[column]),
            end + 4.0,
            y + BAR - 1.0,
        );
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}
