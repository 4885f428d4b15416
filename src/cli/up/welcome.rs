//! The first screen: what a newcomer can do now.

use std::net::SocketAddr;
use std::path::Path;

/// All of it, ending with the line `ready`, which scripts wait for.
pub fn text(listen: SocketAddr, data: &Path) -> String {
    let data = data.display();
    format!(
        "
Aldis is running. Everything it keeps is in {data}

  In a browser, alice and bob side by side:
    open http://{listen}/

  In two terminals, with websocat:
    websocat 'ws://{listen}/v1/connect?user=bob'
    websocat 'ws://{listen}/v1/connect?user=alice'
  then type this line into alice's; bob's shows it:
    {{\"t\":\"send\",\"to\":\"bob\",\"id\":\"1\",\"body\":\"hello\"}}

  Ctrl-C ends it; `aldis up` on the same directory goes on where it stopped.
  Health and metrics of each process: http:// + the address in {data}/run/*.admin

ready
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_where_to_go_and_ends_with_ready() {
        let listen = "127.0.0.1:8080".parse().unwrap();
        let text = text(listen, Path::new("./aldis-data"));
        assert!(text.contains("open http://127.0.0.1:8080/\n"));
        assert!(text.contains("'ws://127.0.0.1:8080/v1/connect?user=alice'"));
        assert!(text.contains(r#"{"t":"send","to":"bob","id":"1","body":"hello"}"#));
        assert_eq!(text.lines().last(), Some("ready"));
    }
}
