//! The page as an outside reader sees it.

use std::io::{Read, Write};
use std::net::TcpStream;

use hdrhistogram::Histogram;

use super::*;

#[test]
fn cells_of_one_name_add_up() {
    let registry = Registry::new("edge");
    let first = registry.counter("aldis_messages_accepted_total", "Messages accepted.");
    let second = registry.counter("aldis_messages_accepted_total", "Messages accepted.");
    first.add(2);
    second.set(40);
    let text = registry.render();
    assert!(text.contains("# TYPE aldis_messages_accepted_total counter\n"));
    assert!(text.contains("\naldis_messages_accepted_total 42\n"));
    assert!(text.contains("aldis_process_info{process=\"edge\""));
}

#[test]
fn gauges_fall_and_labels_are_escaped() {
    let registry = Registry::new("store");
    let gauge = registry.gauge_with("aldis_connections", "Open.", &[("kind", "a\"b")]);
    gauge.add(3);
    gauge.sub(1);
    let text = registry.render();
    assert!(text.contains("aldis_connections{kind=\"a\\\"b\"} 2\n"));
}

#[test]
fn summaries_are_merged_and_shown_in_seconds() {
    let registry = Registry::new("store");
    for value in [1_000, 3_000] {
        let mut histogram = Histogram::<u64>::new(3).unwrap();
        histogram.record(value).unwrap();
        let summary = registry.summary("aldis_commit_seconds", "Commit time.");
        summary.publish(&histogram);
    }
    let text = registry.render();
    assert!(text.contains("aldis_commit_seconds_count 2\n"), "{text}");
    assert!(text.contains("aldis_commit_seconds{quantile=\"0.5\"} 0.001\n"));
}

#[test]
#[should_panic(expected = "not a metric name")]
fn a_name_without_the_prefix_is_our_bug() {
    Registry::new("edge").counter("connections", "Open.");
}

#[test]
fn the_page_is_served_and_its_address_is_written_down() {
    let folder = tempfile::tempdir().unwrap();
    let options = AdminOptions {
        address: "127.0.0.1:0".parse().unwrap(),
        file: Some(folder.path().join("edge.admin")),
    };
    let registry = Registry::new("edge");
    registry.gauge("aldis_connections", "Open.").set(7);
    let health = Health::starting();
    let address = options.open(&registry, &health).unwrap();
    let written = std::fs::read_to_string(folder.path().join("edge.admin")).unwrap();
    assert_eq!(written, format!("{address}\n"));

    assert!(request(address, "/healthz").starts_with("HTTP/1.1 503"));
    assert!(request(address, "/healthz").ends_with("\r\n\r\nstarting\n"));
    health.set_ok();
    assert!(request(address, "/healthz").ends_with("\r\n\r\nok\n"));
    let mut shard = health.part("shard 1");
    assert!(request(address, "/readyz").starts_with("HTTP/1.1 200"));
    shard.set(Some("no link to the sequencer"));
    assert!(request(address, "/healthz").ends_with("\r\n\r\nok\n"), "it lives");
    let unready = request(address, "/readyz");
    assert!(unready.starts_with("HTTP/1.1 503"), "{unready}");
    assert!(unready.ends_with("\r\n\r\nshard 1: no link to the sequencer\n"), "{unready}");
    shard.set(None);
    assert!(request(address, "/readyz").ends_with("\r\n\r\nok\n"));
    health.part("").set(Some("draining"));
    assert!(request(address, "/readyz").ends_with("\r\n\r\ndraining\n"));
    let page = request(address, "/metrics");
    assert!(page.contains("text/plain; version=0.0.4"));
    assert!(page.contains("\naldis_connections 7\n"));
}

#[test]
fn an_address_in_use_is_an_error_that_names_it() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let error = start(address, Registry::new("edge"), Health::starting()).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse);
    assert!(error.to_string().contains(&address.to_string()));
}

#[test]
fn an_address_that_an_earlier_life_still_holds_is_waited_for() {
    let earlier = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = earlier.local_addr().unwrap();
    let ending = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(200));
        drop(earlier);
    });
    let options = AdminOptions { address, file: None };
    assert_eq!(options.open(&Registry::new("edge"), &Health::starting()).unwrap(), address);
    ending.join().unwrap();
}

fn request(address: std::net::SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    let head = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}
