//! Serves a snapshot with Hexz's own NBD server, as `hexz serve --nbd` would if `hexz` 0.8.2 had it.

fn main() -> anyhow::Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [snapshot, port] = words.as_slice() else {
        anyhow::bail!("usage: upstream-nbd SNAPSHOT PORT");
    };
    hexz_cli::cmd::sys::serve::run(snapshot, port.parse()?, "127.0.0.1", false, true)
}
