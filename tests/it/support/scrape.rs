//! What Prometheus reads, with every rule of its format that a server could break.

use std::collections::BTreeMap;

use crate::support::watched::Watched;

/// What one look at the metrics has found.
#[derive(Debug)]
pub(crate) struct Scrape {
    pub(crate) text: String,
    pub(crate) samples: BTreeMap<String, f64>,
    /// Those of them that only grow.
    growing: Vec<String>,
}

impl Scrape {
    /// What the server shows now. It must be as OpenMetrics wants it.
    pub(crate) fn of(watched: &Watched) -> Self {
        let (code, head, text) = watched.get("/metrics");
        assert_eq!(code, 200);
        assert!(
            head.contains("content-type: application/openmetrics-text; version=1.0.0"),
            "{head}"
        );
        Self::parse(text)
    }

    fn parse(text: String) -> Self {
        let (mut samples, mut growing, mut kinds) = (BTreeMap::new(), Vec::new(), BTreeMap::new());
        let body = text.strip_suffix("# EOF\n").unwrap_or_else(|| panic!("no end: {text}"));
        for line in body.lines() {
            if let Some(about) = line.strip_prefix("# ") {
                let [what, family, rest] = about.splitn(3, ' ').collect::<Vec<_>>()[..] else {
                    panic!("{line}");
                };
                assert!(["HELP", "TYPE", "UNIT"].contains(&what), "{line}");
                if what == "TYPE" {
                    assert_eq!(kinds.insert(family, rest), None, "{line}");
                }
                continue;
            }
            let sample = line.split(" # ").next().unwrap();
            let (name, value) = sample.rsplit_once(' ').unwrap();
            let bare = name.split('{').next().unwrap();
            let kind = ["_total", "_bucket", "_sum", "_count", "_info", ""]
                .iter()
                .find_map(|suffix| kinds.get(bare.strip_suffix(suffix)?));
            let kind = kind.unwrap_or_else(|| panic!("{name} is of no family"));
            if ["counter", "histogram"].contains(kind) {
                growing.push(name.to_owned());
            }
            let value = value.parse().unwrap_or_else(|_| panic!("{line}"));
            assert_eq!(samples.insert(name.to_owned(), value), None, "{name} stands there twice");
        }
        Self { samples, growing, text }
    }

    /// The sample with that name, which must be there.
    pub(crate) fn number(&self, name: &str) -> f64 {
        let number = self.samples.get(name).copied();
        number.unwrap_or_else(|| panic!("no {name} in {}", self.text))
    }

    /// The same, as the whole number that counters are.
    pub(crate) fn count(&self, name: &str) -> u64 {
        whole(self.number(name))
    }

    /// The sum of all samples of that name, whatever their labels.
    pub(crate) fn sum(&self, name: &str) -> u64 {
        let of = |sample: &str| sample.split('{').next() == Some(name);
        whole(self.samples.iter().filter(|(sample, _)| of(sample)).map(|(_, value)| value).sum())
    }

    /// Nothing that was there before is gone, and nothing that only grows has shrunk.
    pub(crate) fn follows(&self, before: &Self) {
        for name in &before.growing {
            let (then, now) = (before.number(name), self.number(name));
            assert!(now >= then, "{name} was {then} and is {now}");
        }
    }
}

#[expect(clippy::cast_sign_loss, reason = "it was looked at")]
fn whole(number: f64) -> u64 {
    assert!(number >= 0.0 && number.fract() == 0.0, "{number}");
    number as u64
}
