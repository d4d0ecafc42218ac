//! The text format of Prometheus (version 0.0.4), and the document of all metrics.

use std::fmt::{self, Display, Write as _};

use super::{
    Facts,
    table::{METRICS, Metric},
};

/// All metrics as Prometheus reads them.
pub(super) fn exposition(facts: &Facts) -> String {
    let mut text = String::new();
    for metric in METRICS {
        // Writing into a string cannot fail.
        let _ = write_metric(&mut text, metric, facts);
    }
    text
}

fn write_metric(text: &mut String, metric: &Metric, facts: &Facts) -> fmt::Result {
    let name = metric.name;
    let unit = match metric.unit {
        "" => String::new(),
        unit => format!(" [{unit}]"),
    };
    writeln!(text, "# HELP {name} {}{unit}", metric.meaning)?;
    writeln!(text, "# TYPE {name} {}", metric.kind.name())?;
    for sample in (metric.read)(facts) {
        text.push_str(name);
        for (number, (label, value)) in metric.labels.iter().zip(&sample.labels).enumerate() {
            let before = if number == 0 { '{' } else { ',' };
            write!(text, "{before}{label}=\"{}\"", Escaped(value))?;
        }
        if !metric.labels.is_empty() {
            text.push('}');
        }
        writeln!(text, " {}", sample.value)?;
    }
    Ok(())
}

/// A label's value.
struct Escaped<'a>(&'a str);

impl Display for Escaped<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for letter in self.0.chars() {
            match letter {
                '\\' | '"' => write!(formatter, "\\{letter}")?,
                '\n' => formatter.write_str("\\n")?,
                letter => formatter.write_char(letter)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::{collections::HashSet, fs, path::Path};

    use monitor_api::v1::{self, Severity, status};

    use super::*;
    use crate::{alerts::AlertLog, api::fixture::container, metrics::IMAGES_MAX};

    fn facts() -> Facts {
        let log = AlertLog::new();
        for severity in [Severity::Critical, Severity::Critical, Severity::Low] {
            log.append(v1::Alert {
                kind: "exec_added".to_owned(),
                severity: severity.into(),
                ..v1::Alert::default()
            });
        }
        let hook = status::Hook {
            event: "exec".to_owned(),
            hook: "lsm".to_owned(),
            seen: 9,
            ring_full: 2,
            ..status::Hook::default()
        };
        let alerts = status::Alerts {
            newest_cursor: 3,
            consumers: [("s\"o\\c\n".to_owned(), 1)].into(),
            ..status::Alerts::default()
        };
        Facts {
            status: v1::Status {
                version: "1.2.3".to_owned(),
                ready: true,
                hooks: vec![hook],
                alerts: Some(alerts),
                ..v1::Status::default()
            },
            alerts: log.summary(),
            containers: vec![of_image("registry:5000/a/web:1", "sha256:aa"); 2],
        }
    }

    fn of_image(reference: &str, digest: &str) -> v1::Container {
        let mut container = container("c", "c");
        let image = container.image.as_mut().unwrap();
        image.reference = reference.to_owned();
        image.manifest_digest = digest.to_owned();
        container
    }

    #[test]
    fn facts_are_written_with_their_labels() {
        let text = exposition(&facts());
        for line in [
            "# TYPE monitor_alerts_total counter",
            "monitor_build_info{version=\"1.2.3\"} 1",
            "monitor_ready 1",
            "monitor_hook_seen_total{event=\"exec\"} 9",
            "monitor_hook_lost_total{event=\"exec\",cause=\"ring_full\"} 2",
            "monitor_alerts_total{kind=\"exec_added\",severity=\"critical\"} 2",
            "monitor_alerts_total{kind=\"exec_added\",severity=\"low\"} 1",
            "monitor_consumer_lag_alerts{consumer=\"s\\\"o\\\\c\\n\"} 2",
            "monitor_image_running{repository=\"registry:5000/a/web\",digest=\"sha256:aa\"} 2",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}: {text}");
        }
    }

    #[test]
    fn images_beyond_the_bound_are_summed() {
        let mut facts = facts();
        for number in 0..IMAGES_MAX + 9 {
            let image = of_image("web@sha256:ff", &format!("sha256:{number}"));
            facts.containers.push(image);
        }
        let text = exposition(&facts);
        let images = text
            .lines()
            .filter(|line| line.starts_with("monitor_image_running{"));
        assert_eq!(images.count(), IMAGES_MAX + 1);
        let other = "monitor_image_running{repository=\"other\",digest=\"\"} 10";
        assert!(text.contains(other), "{text}");
        let kept =
            "monitor_image_running{repository=\"registry:5000/a/web\",digest=\"sha256:aa\"} 2";
        assert!(text.contains(kept), "the most containers stay: {text}");
    }

    #[test]
    fn names_follow_the_conventions() {
        let mut names = HashSet::new();
        for metric in METRICS {
            let name = metric.name;
            assert!(names.insert(name), "{name} twice");
            assert!(name.starts_with("monitor_"), "{name}");
            let is_counter = metric.kind.name() == "counter";
            assert_eq!(name.ends_with("_total"), is_counter, "{name}");
            assert!(!metric.meaning.contains(['\n', '\\', '|']), "{name}");
            for sample in (metric.read)(&facts()) {
                assert_eq!(sample.labels.len(), metric.labels.len(), "{name}");
            }
        }
    }

    /// What `docs/metrics.md` is to be.
    fn document() -> String {
        let mut text = "# Metrics\n\n\
            Written from the table in `monitor/src/metrics/table.rs`, by\n\
            `MONITOR_WRITE_DOCS=1 cargo test --release -p monitor metrics`; do not change it by hand.\n\n\
            Counters count from the start of the daemon, those of hooks from when the hooks were made,\n\
            which pins make outlive a daemon. Names and meanings stay; others may be added.\n\n\
            | name | type | unit | labels | meaning |\n\
            | --- | --- | --- | --- | --- |\n"
            .to_owned();
        for metric in METRICS {
            let labels: Vec<String> = metric
                .labels
                .iter()
                .map(|label| format!("`{label}`"))
                .collect();
            writeln!(
                text,
                "| `{}` | {} | {} | {} | {} |",
                metric.name,
                metric.kind.name(),
                metric.unit,
                labels.join(", "),
                metric.meaning
            )
            .unwrap();
        }
        text
    }

    #[test]
    fn the_document_is_current() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md");
        if std::env::var_os("MONITOR_WRITE_DOCS").is_some() {
            fs::write(&path, document()).unwrap();
        }
        let is_current = fs::read_to_string(&path).unwrap_or_default() == document();
        assert!(
            is_current,
            "docs/metrics.md is not of this table: run `MONITOR_WRITE_DOCS=1 cargo test --release -p monitor metrics`"
        );
    }
}
