//! Text of figures that are read for each request.

use std::fmt;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, prometheus_text},
    metrics::MetricType,
    registry::Registry,
};

/// Media type of the text.
pub const CONTENT_TYPE: &str = prometheus_text::CONTENT_TYPE;

/// Figures in the text format of Prometheus. Metrics appear in the order in which they were added.
///
/// ```
/// let mut figures = metrics_endpoint::Exposition::default();
/// figures.counter("demo_lines", "Number of lines.", 3);
/// figures.gauge("demo_queued_bytes", "Size of the queue.", 1.5);
/// let text = figures.text();
/// let counter = "# TYPE demo_lines_total counter\ndemo_lines_total 3\n";
/// assert_eq!(text.lines().next(), Some("# HELP demo_lines_total Number of lines."));
/// assert!(text.contains(counter) && text.ends_with("demo_queued_bytes 1.5\n"));
/// ```
#[derive(Clone, Debug, Default)]
pub struct Exposition(Vec<Metric>);

#[derive(Clone, Debug)]
struct Metric {
    name: &'static str,
    help: &'static str,
    kind: MetricType,
    samples: Vec<Sample>,
}

#[derive(Clone, Debug)]
struct Sample {
    labels: Vec<(&'static str, String)>,
    value: Value,
}

#[derive(Clone, Copy, Debug)]
enum Value {
    Count(u64),
    Size(f64),
}

/// Labels of a sample, and its value.
pub type Labelled<T> = (Vec<(&'static str, String)>, T);

impl Exposition {
    /// Adds a counter. `_total` is appended to its name.
    pub fn counter(&mut self, name: &'static str, help: &'static str, value: u64) {
        self.counters(name, help, [(Vec::new(), value)]);
    }

    /// Adds a counter with labels; nothing if there are no samples.
    pub fn counters(
        &mut self,
        name: &'static str,
        help: &'static str,
        samples: impl IntoIterator<Item = Labelled<u64>>,
    ) {
        let samples = samples.into_iter().map(|(labels, value)| (labels, Value::Count(value)));
        self.add(name, help, MetricType::Counter, samples.collect());
    }

    /// Adds a gauge.
    pub fn gauge(&mut self, name: &'static str, help: &'static str, value: f64) {
        self.gauges(name, help, [(Vec::new(), value)]);
    }

    /// Adds a gauge with labels; nothing if there are no samples.
    pub fn gauges(
        &mut self,
        name: &'static str,
        help: &'static str,
        samples: impl IntoIterator<Item = Labelled<f64>>,
    ) {
        let samples = samples.into_iter().map(|(labels, value)| (labels, Value::Size(value)));
        self.add(name, help, MetricType::Gauge, samples.collect());
    }

    fn add(
        &mut self,
        name: &'static str,
        help: &'static str,
        kind: MetricType,
        samples: Vec<(Vec<(&'static str, String)>, Value)>,
    ) {
        if samples.is_empty() {
            return;
        }
        let samples = samples.into_iter().map(|(labels, value)| Sample { labels, value }).collect();
        self.0.push(Metric { name, help, kind, samples });
    }

    /// Returns the text.
    #[must_use]
    pub fn text(self) -> String {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(self));
        let mut text = String::new();
        prometheus_text::encode(&mut text, &registry).expect("a string can be written");
        text
    }
}

impl Collector for Exposition {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for Metric { name, help, kind, samples } in &self.0 {
            let mut metric = encoder.encode_descriptor(name, help, None, *kind)?;
            for Sample { labels, value } in samples {
                let labels = labels.as_slice();
                let mut sample = metric.encode_family(&labels)?;
                match value {
                    Value::Count(count) => {
                        sample.encode_counter::<[(&str, &str); 0], u64, f64>(count, None)?;
                    }
                    Value::Size(size) => sample.encode_gauge(size)?,
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_escaped_and_empty_metrics_are_omitted() {
        let mut figures = Exposition::default();
        figures.gauges("a", "Nothing.", []);
        let labels = |sink: &str| vec![("sink", sink.to_owned())];
        figures.counters("b", "Entries.", [(labels("x\"\n"), 1), (labels("y"), u64::MAX)]);
        assert_eq!(
            figures.text(),
            "# HELP b_total Entries.\n# TYPE b_total counter\nb_total{sink=\"x\\\"\\n\"} 1\n\
             b_total{sink=\"y\"} 18446744073709551615\n"
        );
    }
}
