//! `LIST_META_CONTEXT` and `SET_META_CONTEXT`, rule by rule, against raw sockets.

use crate::support::client::{ACK, Client, ERR_INVALID, ERR_UNKNOWN, query};
use crate::support::server::Server;
use crate::support::wire::{
    BLOCK_STATUS, EINVAL, GO, LIST, LIST_META_CONTEXT, SET_META_CONTEXT, STRUCTURED_REPLY,
};

const ALL: [&str; 3] = ["base:allocation", "hexz:parent-depth", "hexz:shared"];

/// Payload of both options.
pub(crate) fn contexts_query(export: &str, queries: &[&str]) -> Vec<u8> {
    let text = |text: &str| [&(text.len() as u32).to_be_bytes(), text.as_bytes()].concat();
    let queries_text: Vec<u8> = queries.iter().flat_map(|query| text(query)).collect();
    [text(export), (queries.len() as u32).to_be_bytes().to_vec(), queries_text].concat()
}

/// Numbers and names of the contexts that an option is answered with.
async fn ask(client: &mut Client, code: u32, export: &str, queries: &[&str]) -> Vec<(u32, String)> {
    let (contexts, last) = client.option(code, &contexts_query(export, queries)).await;
    assert_eq!(last, ACK, "{queries:?}");
    let split = |payload: Vec<u8>| {
        let (id, name) = payload.split_at(4);
        let id = u32::from_be_bytes(id.try_into().unwrap());
        (id, String::from_utf8(name.to_vec()).unwrap())
    };
    contexts.into_iter().map(split).collect()
}

async fn structured(server: &Server) -> Client {
    let mut client = server.greet().await;
    assert_eq!(client.option(STRUCTURED_REPLY, b"").await.1, ACK);
    client
}

/// Error number of a question about extents, 0 if there is none.
async fn question(client: &mut Client) -> u32 {
    use crate::support::chunks::Chunk;
    client.request(0, BLOCK_STATUS, 9, 0, 4096).await;
    match &client.chunks(9).await[..] {
        [.., Chunk::Error { error, .. }] => *error,
        _ => 0,
    }
}

#[tokio::test]
async fn without_queries_all_contexts_are_listed_and_their_numbers_are_zero() {
    let server = Server::start().await;
    for is_structured in [false, true] {
        let mut client = server.greet().await;
        if is_structured {
            client.option(STRUCTURED_REPLY, b"").await;
        }
        let listed = ask(&mut client, LIST_META_CONTEXT, "disk", &[]).await;
        let names: Vec<&str> = listed.iter().map(|(_, name)| name.as_str()).collect();
        assert_eq!(names, ALL);
        assert!(listed.iter().all(|(id, _)| *id == 0), "{listed:?}");
    }
}

#[tokio::test]
async fn queries_list_contexts_by_name_or_by_namespace_each_once() {
    let server = Server::start().await;
    let mut client = structured(&server).await;
    for (queries, expected) in [
        (&["base:allocation"][..], &ALL[..1]),
        (&["base:"], &ALL[..1]),
        (&["hexz:"], &ALL[1..]),
        (&["hexz:", "base:", "hexz:shared"], &ALL[..]),
        (&["base"], &[]),
        (&["hexz:share"], &[]),
        (&["qemu:dirty-bitmap:"], &[]),
        (&[""], &[]),
    ] {
        let listed = ask(&mut client, LIST_META_CONTEXT, "", queries).await;
        let names: Vec<&str> = listed.iter().map(|(_, name)| name.as_str()).collect();
        assert_eq!(names, expected, "{queries:?}");
    }
}

#[tokio::test]
async fn each_context_that_is_set_has_a_number_of_its_own_and_replaces_those_set_before() {
    let server = Server::start().await;
    let mut client = structured(&server).await;
    let chosen = ask(&mut client, SET_META_CONTEXT, "disk", &ALL).await;
    let mut ids: Vec<u32> = chosen.iter().map(|(id, _)| *id).collect();
    ids.dedup();
    assert_eq!(ids.len(), 3);
    let only = ask(&mut client, SET_META_CONTEXT, "disk", &["hexz:shared", "nothing:"]).await;
    assert_eq!(only, chosen[2..]);
    client.go("disk").await;
    use crate::support::chunks::Chunk;
    client.request(0, BLOCK_STATUS, 1, 0, 4096).await;
    let chunks = client.chunks(1).await;
    assert!(matches!(&chunks[..], [Chunk::Status { context, .. }] if *context == only[0].0));
}

/// "It is not an error if a `NBD_OPT_SET_META_CONTEXT` option does not select any".
#[tokio::test]
async fn a_query_that_finds_nothing_is_no_error_and_sets_nothing() {
    let server = Server::start().await;
    for queries in [&[][..], &["base:"], &["nothing:at-all"]] {
        let mut client = structured(&server).await;
        ask(&mut client, SET_META_CONTEXT, "disk", &["base:allocation"]).await;
        assert_eq!(ask(&mut client, SET_META_CONTEXT, "disk", queries).await, []);
        client.go("disk").await;
        assert_eq!(question(&mut client).await, EINVAL, "{queries:?}");
    }
}

#[tokio::test]
async fn setting_contexts_needs_structured_replies_first() {
    let server = Server::start().await;
    let mut client = server.greet().await;
    let payload = contexts_query("disk", &["base:allocation"]);
    assert_eq!(client.option(SET_META_CONTEXT, &payload).await, (vec![], ERR_INVALID));
    client.option(STRUCTURED_REPLY, b"").await;
    assert_eq!(client.option(SET_META_CONTEXT, &payload).await.1, ACK);
}

/// CVE-2022-26495 and -26496: lengths that lie.
#[tokio::test]
async fn queries_that_lie_about_their_lengths_are_invalid_and_the_session_goes_on() {
    let server = Server::start().await;
    let mut client = structured(&server).await;
    let good = contexts_query("disk", &["base:allocation"]);
    let mut lies: Vec<Vec<u8>> = (0..good.len()).map(|length| good[..length].to_vec()).collect();
    for at in [0, 8, 12] {
        for length in [u32::MAX, u32::MAX - 3, 1 << 31, 4097] {
            let mut lie = good.clone();
            lie[at..at + 4].copy_from_slice(&length.to_be_bytes());
            lies.push(lie);
        }
    }
    lies.push([&good[..], b"x"].concat());
    lies.push(contexts_query("disk", &["a\0b"]));
    for lie in lies {
        for code in [LIST_META_CONTEXT, SET_META_CONTEXT] {
            assert_eq!(client.option(code, &lie).await, (vec![], ERR_INVALID), "{lie:?}");
        }
    }
    assert_eq!(client.option(LIST, b"").await.1, ACK);
}

#[tokio::test]
async fn contexts_of_an_export_that_is_not_there_are_unknown_and_those_before_are_forgotten() {
    let server = Server::start().await;
    let mut client = structured(&server).await;
    ask(&mut client, SET_META_CONTEXT, "disk", &["base:allocation"]).await;
    for code in [LIST_META_CONTEXT, SET_META_CONTEXT] {
        let payload = contexts_query("nothing", &["base:allocation"]);
        assert_eq!(client.option(code, &payload).await, (vec![], ERR_UNKNOWN));
    }
    client.go("disk").await;
    assert_eq!(question(&mut client).await, EINVAL);
}

#[tokio::test]
async fn contexts_hold_for_the_export_that_they_were_set_for_under_either_of_its_names() {
    let server = Server::start().await;
    for (set_for, opened, expected) in [
        ("disk", "disk", 0),
        ("", "disk", 0),
        ("disk", "", 0),
        ("zstd", "disk", EINVAL),
        ("zstd", "", EINVAL),
    ] {
        let mut client = structured(&server).await;
        ask(&mut client, SET_META_CONTEXT, set_for, &["base:allocation"]).await;
        assert_eq!(client.option(GO, &query(opened, &[])).await.1, ACK);
        assert_eq!(question(&mut client).await, expected, "{set_for:?} {opened:?}");
    }
}
