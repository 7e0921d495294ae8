//! The page that shows people how the server is. It asks for `/status.json` and `/history.json`.
//!
//! What it needs is in the binary, so that it needs nobody else, and its policy lets it have
//! nothing from anybody else. Clients choose some of what it shows: nothing inline runs.

use axum::Router;
use axum::http::header;
use axum::routing::get;

/// What the page may do. Everything else of the status may do nothing at all.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
     img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; \
     frame-ancestors 'none'";

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";

/// What the page is made of: path, type, contents.
const PARTS: [(&str, &str, &str); 9] = [
    ("/page/page.css", CSS, include_str!("status_page/page.css")),
    ("/page/page.js", SCRIPT, include_str!("status_page/page.js")),
    ("/page/charts.js", SCRIPT, include_str!("status_page/charts.js")),
    ("/page/format.js", SCRIPT, include_str!("status_page/format.js")),
    ("/page/table.js", SCRIPT, include_str!("status_page/table.js")),
    ("/page/icon.svg", "image/svg+xml", include_str!("status_page/icon.svg")),
    ("/page/uplot.css", CSS, include_str!("status_page/uplot/uPlot.min.css")),
    // Whoever gets the library gets its licence, whatever way the binary went.
    ("/page/uplot.txt", "text/plain; charset=utf-8", include_str!("status_page/uplot/LICENSE")),
    ("/page/uplot.js", SCRIPT, include_str!("status_page/uplot/uPlot.iife.min.js")),
];

/// The page and its parts.
pub(super) fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> {
    let page = || async {
        let headers = [
            (header::CONTENT_TYPE, HTML),
            (header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY),
        ];
        (headers, include_str!("status_page/index.html"))
    };
    PARTS.into_iter().fold(Router::new().route("/", get(page)), |routes, (path, kind, contents)| {
        routes.route(path, get(move || async move { ([(header::CONTENT_TYPE, kind)], contents) }))
    })
}
