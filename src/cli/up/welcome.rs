//! The first screen: what a newcomer can do now.

use std::net::SocketAddr;
use std::path::Path;

/// All of it, ending with the line `ready`, which scripts wait for. `program`: how this one was
/// called, so that the commands can be copied: it need not be on the PATH.
pub fn text(program: &str, listen: SocketAddr, data: &Path, is_development: bool) -> String {
    let data = data.display();
    let first = match is_development {
        true => by_saying_so(program, listen),
        false => by_token(program, listen),
    };
    format!(
        "
Aldis is running. Everything it keeps is in {data}

{first}  and type this line into alice's; bob's shows it:
    {{\"t\":\"send\",\"to\":\"bob\",\"id\":\"1\",\"body\":\"hello\"}}

  Ctrl-C ends it; `{program} up` on the same directory goes on where it stopped.
  Health and metrics of each process: http:// + the address in {data}/run/*.admin

ready
"
    )
}

fn by_saying_so(program: &str, listen: SocketAddr) -> String {
    let is_default = listen == SocketAddr::from(([127, 0, 0, 1], 8080));
    let url = if is_default { String::new() } else { format!(" --url ws://{listen}") };
    format!(
        "  In a browser, alice and bob side by side:
    open http://{listen}/

  In two terminals:
    {program} tail --as bob{url}
    {program} send --as alice --to bob{url} hello

  The same with websocat:
    websocat 'ws://{listen}/v1/connect?user=bob'
    websocat 'ws://{listen}/v1/connect?user=alice'
"
    )
}

fn by_token(program: &str, listen: SocketAddr) -> String {
    format!(
        "  In two terminals, with websocat and the key that signs tokens:
    websocat \"ws://{listen}/v1/connect?token=$({program} token --jwt-key FILE --user bob)\"
    websocat \"ws://{listen}/v1/connect?token=$({program} token --jwt-key FILE --user alice)\"
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_where_to_go_and_ends_with_ready() {
        let listen = "127.0.0.1:8080".parse().unwrap();
        let with_tokens = text("aldis", listen, Path::new("./aldis-data"), false);
        assert!(with_tokens.contains("$(aldis token --jwt-key FILE --user alice)"));
        assert_eq!(with_tokens.lines().last(), Some("ready"));
        let text = text("target/release/aldis", listen, Path::new("./aldis-data"), true);
        assert!(text.contains("open http://127.0.0.1:8080/\n"));
        assert!(text.contains("'ws://127.0.0.1:8080/v1/connect?user=alice'"));
        assert!(text.contains("    target/release/aldis send --as alice --to bob hello\n"));
        let elsewhere = super::text("aldis", "[::1]:9".parse().unwrap(), Path::new("d"), true);
        assert!(elsewhere.contains("    aldis tail --as bob --url ws://[::1]:9\n"));
        assert!(text.contains(r#"{"t":"send","to":"bob","id":"1","body":"hello"}"#));
        assert_eq!(text.lines().last(), Some("ready"));
    }
}
