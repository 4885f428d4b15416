//! The HTTP server behind the admin page: one thread with a runtime of its own.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::thread;

use axum::Router;
use axum::extract::State;
use axum::http::{Method, StatusCode, Uri, header};
use axum::response::IntoResponse;
use axum::routing::{any, get, post};

use super::desk::{self, Desk};
use super::{Ask, Health, Registry};

/// What Prometheus expects of the text format.
const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Serves `/healthz`, `/readyz` and `/metrics` at `address` (port 0: any) until the process ends,
/// and returns the bound address. Errors are those of the bind and name the address.
pub fn start(address: SocketAddr, registry: Registry, health: Health) -> io::Result<SocketAddr> {
    let listener = bind(address)?;
    let bound = listener.local_addr()?;
    serve(listener, registry, health)?;
    Ok(bound)
}

/// Listens at `address`. Errors name it.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(address)
        .map_err(|error| io::Error::new(error.kind(), format!("admin address {address}: {error}")))
}

/// As [`start`], on a socket that listens already.
pub fn serve(listener: TcpListener, registry: Registry, health: Health) -> io::Result<()> {
    serve_all(listener, registry, health, None)
}

/// The same, with a desk.
pub fn serve_all(
    listener: TcpListener,
    registry: Registry,
    health: Health,
    desk: Option<Desk>,
) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
    thread::Builder::new().name("admin".to_owned()).spawn(move || {
        if let Err(error) = runtime.block_on(answer_all(listener, registry, health, desk)) {
            tracing::error!(%error, "the admin page has ended");
        }
    })?;
    Ok(())
}

async fn answer_all(
    listener: TcpListener,
    registry: Registry,
    health: Health,
    desk: Option<Desk>,
) -> io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let mut router = Router::new()
        .route("/healthz", get(healthz).with_state(health.clone()))
        .route("/readyz", get(readyz).with_state(health))
        .route("/metrics", get(metrics).with_state(registry.clone()))
        .fallback(any(page).with_state(registry));
    if let Some(desk) = desk {
        router = router.route("/v1/dead", post(desk::ask).with_state(desk));
    }
    axum::serve(listener, router).await
}

async fn healthz(State(health): State<Health>) -> impl IntoResponse {
    answer(health.reason())
}

async fn readyz(State(health): State<Health>) -> impl IntoResponse {
    answer(health.unready())
}

fn answer(reason: Option<String>) -> impl IntoResponse {
    match reason {
        None => (StatusCode::OK, "ok\n".to_owned()),
        Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
    }
}

async fn metrics(State(registry): State<Registry>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, METRICS_TYPE)], registry.render())
}

/// What the process itself offers, in JSON.
async fn page(State(registry): State<Registry>, method: Method, uri: Uri) -> impl IntoResponse {
    let json = [(header::CONTENT_TYPE, "application/json")];
    let is_post = method == Method::POST;
    match registry.page_at(uri.path()).filter(|_| is_post || method == Method::GET) {
        Some(page) => {
            let query = uri.query().unwrap_or_default().to_owned();
            (StatusCode::OK, json, page(&Ask { is_post, query }))
        }
        None => (StatusCode::NOT_FOUND, json, "{}\n".to_owned()),
    }
}
