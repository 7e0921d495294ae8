//! A progress bar for people: on a terminal only, never in a log.

use indicatif::{ProgressBar, ProgressStyle};

/// Shows how far a command has come in a number of bytes. Without a terminal nothing is drawn.
#[derive(Debug)]
pub(crate) struct Progress(ProgressBar);

impl Progress {
    /// Begins at 0 of `bytes`.
    pub(crate) fn new(what: &'static str, bytes: u64) -> Self {
        let bar = ProgressBar::new(bytes);
        let template =
            "{msg} [{bar:30}] {bytes}/{total_bytes} {binary_bytes_per_sec} {eta_precise}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_message(what);
        Self(bar)
    }

    /// So many bytes more are done. Any thread may say so.
    pub(crate) fn add(&self, bytes: u64) {
        self.0.inc(bytes);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
