//! The ratios as a chart. Bars to the right of the line are better than bare relays for every
//! measure.

use std::fmt::Write as _;

use crate::report::Section;

const WIDTH: f64 = 760.0;
const LABEL: f64 = 250.0;
const BAR: f64 = 18.0;
/// Right edge: twice as good as the relays. Longer bars are cut and labelled with their value.
const MOST: f64 = 2.5;

/// `about`: lines under the title.
pub fn svg(sections: &[Section], about: &[String]) -> String {
    let rows: usize = sections.iter().map(|section| section.rows.len()).sum();
    let head = 48.0 + 16.0 * about.len() as f64;
    let height = head + sections.len() as f64 * 40.0 + rows as f64 * (BAR + 6.0);
    let scale = (WIDTH - LABEL - 60.0) / MOST;
    let x = |better: f64| LABEL + better.min(MOST) * scale;
    let mut text = format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}"
  font-family="sans-serif" font-size="13">
<rect width="{WIDTH}" height="{height}" fill="#fff"/>
<text x="16" y="24" font-size="15"
  font-weight="bold">Beside bare TCP relays: 1 is as good, longer is better, brown is worse</text>
"##
    );
    for (line, about) in about.iter().enumerate() {
        let _ = writeln!(
            text,
            r##"<text x="16" y="{}" fill="#666" font-size="11">{}</text>"##,
            44 + 16 * line,
            escaped(about)
        );
    }
    let mut y = head;
    for section in sections {
        let title = format!("{} beside {}", section.chain, section.beside);
        let _ = writeln!(
            text,
            r##"<text x="16" y="{}" font-weight="bold">{}</text>"##,
            y + 20.0,
            escaped(&title)
        );
        y += 32.0;
        let top = y;
        for row in &section.rows {
            let (ratio, _, _) = row.ratio();
            let better = if row.higher_is_better {
                ratio
            } else {
                1.0 / ratio
            };
            if !better.is_finite() {
                continue;
            }
            let colour = if better >= 1.0 { "#2a7f62" } else { "#b5651d" };
            let (middle, end) = (y + BAR - 5.0, x(better));
            let _ = writeln!(
                text,
                r##"<text x="{}" y="{middle}" text-anchor="end">{}</text>
<rect x="{LABEL}" y="{y}" width="{:.1}" height="{BAR}" fill="{colour}"/>
<text x="{:.1}" y="{middle}">{better:.2}</text>"##,
                LABEL - 8.0,
                escaped(row.measure),
                end - LABEL,
                end + 6.0,
            );
            y += BAR + 6.0;
        }
        let _ = writeln!(
            text,
            r##"<line x1="{0:.1}" x2="{0:.1}" y1="{top}" y2="{1}"
  stroke="#333" stroke-dasharray="3 3"/>"##,
            x(1.0),
            y - 4.0
        );
        y += 8.0;
    }
    text.push_str("</svg>\n");
    text
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}
