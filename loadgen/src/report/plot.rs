//! Line plots as inline SVG.

use std::fmt::Write as _;

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 62.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 18.0;
const BOTTOM: f64 = 40.0;
const TICKS_MAX: f64 = 6.0;
/// Colours that the page's style has.
const COLORS: usize = 8;

/// How values become places on an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    Linear,
    /// Ten times as much is one step more.
    Log,
    /// Quantiles: a nine more is one step more.
    Nines,
}

pub struct Axis {
    pub label: &'static str,
    pub scale: Scale,
    /// Writes a tick.
    pub text: fn(f64) -> String,
}

pub struct Series {
    pub name: String,
    pub points: Vec<(f64, f64)>,
}

pub struct Plot<'a> {
    pub x: Axis,
    pub y: Axis,
    pub series: Vec<Series>,
    /// Named stretches of the x axis.
    pub bands: Vec<(&'a str, f64, f64)>,
}

/// The last quantile that has a place: there is none for 1.
const NINES_MAX: f64 = 5.0;

impl Scale {
    /// The place of a value, in steps.
    fn place(self, value: f64) -> f64 {
        match self {
            Scale::Linear => value,
            Scale::Log => value.max(1e-9).log10(),
            Scale::Nines => -(1.0 - value).max(10f64.powf(-NINES_MAX)).log10(),
        }
    }

    fn ticks(self, from: f64, to: f64) -> Vec<f64> {
        match self {
            Scale::Linear => linear_ticks(from, to),
            Scale::Log => {
                let decades = from.log10().floor() as i32..=to.log10().ceil() as i32;
                decades.map(|decade| 10f64.powi(decade)).collect()
            }
            Scale::Nines => vec![0.0, 0.5, 0.9, 0.99, 0.999, 0.9999, 1.0],
        }
    }
}

/// Round numbers, one above `to` at least.
fn linear_ticks(from: f64, to: f64) -> Vec<f64> {
    let raw = ((to - from) / TICKS_MAX).max(f64::MIN_POSITIVE);
    let decade = 10f64.powf(raw.log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0].map(|step| step * decade);
    let step = steps.into_iter().find(|step| *step >= raw * 0.999).unwrap_or(raw);
    let first = (from / step).floor();
    let count = ((to / step).ceil() - first).max(1.0) as usize;
    (0..=count).map(|index| (first + index as f64) * step).collect()
}

/// An SVG and the legend before it; `None` without anything to draw.
pub fn svg(plot: &Plot) -> Option<String> {
    let points = || plot.series.iter().flat_map(|series| &series.points);
    let is_positive = |value: f64| plot.y.scale != Scale::Log || value > 0.0;
    let (x_from, x_to) = bounds(points().map(|(x, _)| *x))?;
    let (y_from, y_to) = bounds(points().map(|(_, y)| *y).filter(|y| is_positive(*y)))?;
    let y_from = if plot.y.scale == Scale::Linear { y_from.min(0.0) } else { y_from };
    let x = Ruler::new(&plot.x, x_from, x_to, LEFT, WIDTH - RIGHT);
    let y = Ruler::new(&plot.y, y_from, y_to, HEIGHT - BOTTOM, TOP);
    let mut out = String::new();
    draw(plot, &x, &y, &mut out).expect("writing to a string does not fail");
    Some(out)
}

fn bounds(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    let finite = values.filter(|value| value.is_finite());
    finite.fold(None, |bounds, value| match bounds {
        None => Some((value, value)),
        Some((from, to)) => Some((value.min(from), value.max(to))),
    })
}

/// An axis with its extent, in values and on the picture.
struct Ruler {
    scale: Scale,
    ticks: Vec<f64>,
    from: f64,
    to: f64,
    start: f64,
    end: f64,
}

impl Ruler {
    fn new(axis: &Axis, from: f64, to: f64, start: f64, end: f64) -> Ruler {
        let to = if to > from { to } else { from + from.abs().max(1.0) };
        let ticks = axis.scale.ticks(from, to);
        // The y axis ends at a tick, the x axis at the last point.
        let is_x = end > start && axis.scale == Scale::Linear;
        let (from, to) = match is_x {
            true => (from, to),
            false => (*ticks.first().unwrap_or(&from), *ticks.last().unwrap_or(&to)),
        };
        let ticks = ticks.into_iter().filter(|tick| *tick >= from && *tick <= to).collect();
        Ruler {
            scale: axis.scale,
            ticks,
            from: axis.scale.place(from),
            to: axis.scale.place(to),
            start,
            end,
        }
    }

    fn at(&self, value: f64) -> f64 {
        let share = (self.scale.place(value) - self.from) / (self.to - self.from);
        self.start + share.clamp(0.0, 1.0) * (self.end - self.start)
    }
}

fn draw(plot: &Plot, x: &Ruler, y: &Ruler, out: &mut String) -> std::fmt::Result {
    if plot.series.len() > 1 {
        write!(out, "<p class=\"legend\">")?;
        for (index, series) in plot.series.iter().enumerate() {
            let color = index % COLORS;
            write!(out, "<span><i class=\"c{color}\"></i>{}</span>", escape(&series.name))?;
        }
        writeln!(out, "</p>")?;
    }
    writeln!(out, "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\">")?;
    let (bottom, right) = (HEIGHT - BOTTOM, WIDTH - RIGHT);
    for (index, (name, from, to)) in plot.bands.iter().enumerate() {
        let (from, to) = (x.at(*from), x.at(*to));
        if index % 2 == 0 {
            let (width, height) = (to - from, bottom - TOP);
            writeln!(
                out,
                "<rect class=\"band\" x=\"{from:.1}\" y=\"{TOP}\" width=\"{width:.1}\" \
                 height=\"{height}\"/>"
            )?;
        }
        if to - from > 7.0 * name.len() as f64 {
            let (middle, above) = ((from + to) / 2.0, TOP - 5.0);
            writeln!(out, "<text class=\"m\" x=\"{middle:.1}\" y=\"{above}\">{name}</text>")?;
        }
    }
    for tick in &y.ticks {
        let (at, left) = (y.at(*tick), LEFT - 6.0);
        let text = escape(&(plot.y.text)(*tick));
        writeln!(out, "<path class=\"grid\" d=\"M{LEFT} {at:.1}H{right}\"/>")?;
        writeln!(out, "<text class=\"e\" x=\"{left}\" y=\"{:.1}\">{text}</text>", at + 4.0)?;
    }
    for tick in &x.ticks {
        let (at, below) = (x.at(*tick), bottom + 16.0);
        let text = escape(&(plot.x.text)(*tick));
        writeln!(out, "<text class=\"m\" x=\"{at:.1}\" y=\"{below}\">{text}</text>")?;
    }
    let (middle, below) = ((LEFT + right) / 2.0, HEIGHT - 6.0);
    writeln!(out, "<text class=\"m l\" x=\"{middle}\" y=\"{below}\">{}</text>", plot.x.label)?;
    for (index, series) in plot.series.iter().enumerate() {
        draw_series(series, index % COLORS, x, y, out)?;
    }
    writeln!(out, "</svg>")
}

fn draw_series(
    series: &Series,
    color: usize,
    x: &Ruler,
    y: &Ruler,
    out: &mut String,
) -> std::fmt::Result {
    let is_drawable = |value: f64| value.is_finite() && (y.scale != Scale::Log || value > 0.0);
    let mut path = String::new();
    let mut is_begun = false;
    for (x_value, y_value) in &series.points {
        if !is_drawable(*y_value) {
            is_begun = false;
            continue;
        }
        let letter = if is_begun { 'L' } else { 'M' };
        write!(path, "{letter}{:.1} {:.1}", x.at(*x_value), y.at(*y_value))?;
        is_begun = true;
    }
    let name = escape(&series.name);
    writeln!(out, "<path class=\"s c{color}\" d=\"{path}\"><title>{name}</title></path>")?;
    if let [(only_x, only_y)] = series.points.as_slice() {
        let (at_x, at_y) = (x.at(*only_x), y.at(*only_y));
        writeln!(out, "<circle class=\"c{color}\" cx=\"{at_x:.1}\" cy=\"{at_y:.1}\" r=\"3\"/>")?;
    }
    Ok(())
}

/// Text as it may stand in HTML.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            _ => out.push(character),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plot(scale: Scale, points: Vec<(f64, f64)>) -> Plot<'static> {
        Plot {
            x: Axis { label: "seconds", scale: Scale::Linear, text: |value| value.to_string() },
            y: Axis { label: "y", scale, text: |value| value.to_string() },
            series: vec![Series { name: "a<b".to_owned(), points }],
            bands: vec![("calm", 0.0, 5.0)],
        }
    }

    #[test]
    fn ticks_are_round_and_enclose_the_values() {
        assert_eq!(linear_ticks(0.0, 9.4), [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]);
        assert_eq!(Scale::Log.ticks(3.0, 120.0), [1.0, 10.0, 100.0, 1000.0]);
        let ruler = Ruler::new(
            &Axis { label: "", scale: Scale::Nines, text: |_| String::new() },
            0.0,
            1.0,
            0.0,
            100.0,
        );
        assert_eq!((ruler.at(0.0), ruler.at(1.0)), (0.0, 100.0));
        assert!((ruler.at(0.9) - 20.0).abs() < 1e-6, "a nine is a step");
    }

    #[test]
    fn lines_break_where_there_is_no_value_and_names_are_escaped() {
        let points = vec![(0.0, 10.0), (1.0, 100.0), (2.0, 0.0), (3.0, 10.0), (10.0, 10.0)];
        let text = svg(&plot(Scale::Log, points)).expect("something to draw");
        assert!(text.contains("L118.4 18.0M231.2 260.0L626.0"), "{text}");
        assert!(text.contains("a&lt;b") && text.contains(">calm<"), "{text}");
        assert!(svg(&plot(Scale::Linear, Vec::new())).is_none());
        assert!(svg(&plot(Scale::Linear, vec![(1.0, 1.0)])).is_some_and(|t| t.contains("circle")));
    }
}
