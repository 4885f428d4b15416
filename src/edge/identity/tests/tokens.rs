//! Tokens: every way in, every refusal, and forgeries.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, EncodingKey};
use serde_json::{Value, json};

use super::super::keys::{KEY_COUNT_MAX, KeySet};
use super::*;

const SECRET: &[u8] = b"a secret of at least 32 bytes, as RFC 7518 asks for";
/// Keys of this test, good for nothing else.
const ED25519_PRIVATE: &str = "\
-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VwBCIEIA2ptLyA2ZDI8aKctWM6YHy1O7G5Rzjx2eKULk581VVG
-----END PRIVATE KEY-----
";
const ED25519_PUBLIC: &str = "\
-----BEGIN PUBLIC KEY-----
MCowBQYDK2VwAyEAPOQ1Fi54mN3d1Pn7x9m7KNV5GNALzk4aZmRDyPENsq0=
-----END PUBLIC KEY-----
";
const P256_PRIVATE: &str = "\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg76dfXUipc4yUIDGa
9QtSP14BJri0tZgxQh3wgjAlhNOhRANCAAQpVeGtWv85oh4N3TjUGOSRZTtm9Kne
1fbgt818N+SW3oj7iXzKLESJoVTJVehOIX5Xg8B1vs3iB/sJxRrZUJzM
-----END PRIVATE KEY-----
";
const P256_PUBLIC: &str = "\
-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEKVXhrVr/OaIeDd041BjkkWU7ZvSp
3tX24LfNfDfklt6I+4l8yixEiaFUyVXoTiF+V4PAdb7N4gf7CcUa2VCczA==
-----END PUBLIC KEY-----
";
const P256_COMPRESSED: &str = "\
-----BEGIN PUBLIC KEY-----
MDkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDIgACKVXhrVr/OaIeDd041BjkkWU7ZvSp
3tX24LfNfDfklt4=
-----END PUBLIC KEY-----
";
const P384_PUBLIC: &str = "\
-----BEGIN PUBLIC KEY-----
MHYwEAYHKoZIzj0CAQYFK4EEACIDYgAE1GM7NkdFhkzWaJ72piHSq6LeDL2WMzNm
aFXMsNMzZ176dlzPp9UYLm5QeNFVkYvBDw7SoCU4cb50kvcO15Q9EdhJGovlERj5
A+rHShKn///Y3SMF42uL2m43eTalOvZ/
-----END PUBLIC KEY-----
";
const RSA_PUBLIC: &str = "\
-----BEGIN PUBLIC KEY-----
MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEA+FXGUysLRxn/v/Oq00on
oFnepDj8HkhznVk0ly3VTvcDoUa7/pcYqsHm7zYimzdd4QXOQAbkGBsdDYIqaZ4o
vu+hEIRGF/I85wPEbKjfxn+Stt+7Zhv7F385G+FJrpwD5nAtlYNB2c/L7TPYD6dB
ARAvhp/BDSJrx24jkQfSyXjbumabUu6DjInMmEEsdqyzsLrI/rxwZR9XX1ZArXf8
B7CfRBTmYLY3tsV3rhJlzN4l8oJ/jros8FHTVZ1Ecqzl49vIg0h22nZ5DatDoMl4
zD4m626Lj3pUm+wQTdKZdvCUvOJE6fUYs7nDHjeNCj7o60xEKKzX2Pklu4ucozB3
SwIDAQAB
-----END PUBLIC KEY-----
";

const NOW_MS: u64 = 1_700_000_000_000;

/// The DER of a PEM.
fn der(text: &str) -> Vec<u8> {
    pem::decode(text.as_bytes()).expect("PEM").der
}

fn signer(algorithm: Algorithm) -> EncodingKey {
    match algorithm {
        Algorithm::EdDSA => EncodingKey::from_ed_der(&der(ED25519_PRIVATE)),
        Algorithm::ES256 => EncodingKey::from_ec_der(&der(P256_PRIVATE)),
        _ => EncodingKey::from_secret(SECRET),
    }
}

fn key_file(algorithm: Algorithm) -> &'static [u8] {
    match algorithm {
        Algorithm::EdDSA => ED25519_PUBLIC.as_bytes(),
        Algorithm::ES256 => P256_PUBLIC.as_bytes(),
        _ => SECRET,
    }
}

fn part(value: &Value) -> String {
    URL_SAFE_NO_PAD.encode(value.to_string())
}

/// A token whose parts may be anything, truly signed by `algorithm` with `key`.
fn signed_by(header: &Value, claims: &Value, key: &EncodingKey, algorithm: Algorithm) -> String {
    let message = format!("{}.{}", part(header), part(claims));
    let signature = jsonwebtoken::crypto::sign(message.as_bytes(), key, algorithm);
    format!("{message}.{}", signature.expect("a key of this algorithm"))
}

pub(super) fn signed(header: &Value, claims: &Value) -> String {
    signed_by(header, claims, &signer(Algorithm::HS256), Algorithm::HS256)
}

/// Alice's phone, for an hour.
fn claims() -> Value {
    json!({"sub": "alice", "dev": "phone", "exp": NOW_MS / 1_000 + 3_600})
}

/// The claims with one replaced, or left out.
fn claims_with(name: &str, value: Value) -> Value {
    let mut claims = claims();
    let fields = claims.as_object_mut().expect("an object");
    match value {
        Value::Null => fields.remove(name),
        value => fields.insert(name.to_owned(), value),
    };
    claims
}

fn hs256() -> Value {
    json!({"alg": "HS256", "typ": "JWT"})
}

fn tokens(keys: KeySet) -> Tokens {
    let keys = KeySource::fixed(Arc::new(keys));
    Tokens { keys, issuer: None, audience: None }
}

fn tokens_of(algorithm: Algorithm) -> Tokens {
    tokens(KeySet::from_key_file(key_file(algorithm)).expect("a key"))
}

/// The doubt about a token, or the user and device it proves.
fn checked(tokens: &mut Tokens, token: &str) -> Result<(String, String), Doubt> {
    tokens.check(token, NOW_MS).map(|proven| (proven.user, proven.device))
}

fn doubt(token: &str) -> Doubt {
    checked(&mut tokens_of(Algorithm::HS256), token).expect_err("refused")
}

fn alice() -> Result<(String, String), Doubt> {
    Ok(("alice".to_owned(), "phone".to_owned()))
}

#[test]
fn each_algorithm_is_good_with_its_own_key_only() {
    let algorithms = [Algorithm::HS256, Algorithm::EdDSA, Algorithm::ES256];
    for signing in algorithms {
        let header = json!({"alg": signing, "typ": "JWT"});
        let token = signed_by(&header, &claims(), &signer(signing), signing);
        for verifying in algorithms {
            let checked = checked(&mut tokens_of(verifying), &token);
            let wanted = if signing == verifying { alice() } else { Err(Doubt::Algorithm) };
            assert_eq!(checked, wanted, "{signing:?} by {verifying:?}");
        }
    }
}

#[test]
fn a_public_key_is_never_a_shared_secret() {
    for algorithm in [Algorithm::EdDSA, Algorithm::ES256] {
        let file = key_file(algorithm);
        let text = std::str::from_utf8(file).expect("PEM");
        let point = der(text).split_off(der(text).len() - 32);
        // Everything of it that somebody might take for the secret of an HMAC.
        for secret in [file, text.trim().as_bytes(), &der(text), &point] {
            let key = EncodingKey::from_secret(secret);
            let forged = signed_by(&hs256(), &claims(), &key, Algorithm::HS256);
            let checked = checked(&mut tokens_of(algorithm), &forged);
            assert_eq!(checked, Err(Doubt::Algorithm));
        }
    }
}

#[test]
fn what_a_token_says_of_its_signature_is_not_believed() {
    let unsigned = |alg: &str| format!("{}.{}.", part(&json!({"alg": alg})), part(&claims()));
    for none in ["none", "None", "NONE", "nOnE", "", "HS257", "Ed25519", "hs256"] {
        assert_eq!(doubt(&unsigned(none)), Doubt::Malformed, "{none}");
    }
    for empty in ["HS256"] {
        assert_eq!(doubt(&unsigned(empty)), Doubt::Signature);
    }
    for other in ["HS384", "HS512", "RS256", "PS256", "ES256", "ES384", "EdDSA"] {
        assert_eq!(doubt(&unsigned(other)), Doubt::Algorithm, "{other}");
    }
    let longer = EncodingKey::from_secret(SECRET);
    let header = json!({"alg": "HS512"});
    let by_512 = signed_by(&header, &claims(), &longer, Algorithm::HS512);
    assert_eq!(doubt(&by_512), Doubt::Algorithm);
    let lied = signed_by(&hs256(), &claims(), &longer, Algorithm::HS512);
    assert_eq!(doubt(&lied), Doubt::Signature);
    // A key that the token itself brings (CVE-2018-0114), or says where to find.
    let own = EncodingKey::from_secret(b"the secret of a stranger, long enough as well");
    let k = URL_SAFE_NO_PAD.encode(b"the secret of a stranger, long enough as well");
    let brought = json!({"alg": "HS256", "jwk": {"kty": "oct", "k": k}});
    let linked = json!({"alg": "HS256", "jku": "https://evil.example", "kid": "../../dev/null"});
    for header in [brought, linked] {
        let forged = signed_by(&header, &claims(), &own, Algorithm::HS256);
        assert_eq!(doubt(&forged), Doubt::Signature);
    }
    // ECDSA of zeros (CVE-2022-21449).
    let message = format!("{}.{}", part(&json!({"alg": "ES256"})), part(&claims()));
    let zeros = format!("{message}.{}", URL_SAFE_NO_PAD.encode([0; 64]));
    assert_eq!(checked(&mut tokens_of(Algorithm::ES256), &zeros), Err(Doubt::Signature));
}

#[test]
fn no_other_token_is_good() {
    for algorithm in [Algorithm::HS256, Algorithm::EdDSA, Algorithm::ES256] {
        let mut tokens = tokens_of(algorithm);
        let header = json!({"alg": algorithm});
        let token = signed_by(&header, &claims(), &signer(algorithm), algorithm);
        assert_eq!(checked(&mut tokens, &token), alice());
        for size in 0..token.len() {
            assert!(checked(&mut tokens, &token[..size]).is_err(), "prefix of {size}");
        }
        let (_, signature) = token.rsplit_once('.').expect("three parts");
        let bytes = URL_SAFE_NO_PAD.decode(signature).expect("base64url");
        for index in 0..bytes.len() {
            let mut forged = bytes.clone();
            forged[index] ^= 1;
            let message = &token[..token.len() - signature.len()];
            let forged = format!("{message}{}", URL_SAFE_NO_PAD.encode(forged));
            assert_eq!(checked(&mut tokens, &forged), Err(Doubt::Signature));
        }
        for forged in [format!("{token}="), format!("{token}.x"), format!(" {token}")] {
            assert!(checked(&mut tokens, &forged).is_err(), "{forged}");
        }
        let bob = part(&claims_with("sub", json!("bob")));
        let other = token.replace(&part(&claims()), &bob);
        assert_eq!(checked(&mut tokens, &other), Err(Doubt::Signature));
    }
    for garbage in ["", ".", "..", "...", "a.b.c", "{}.{}.{}", "eyJ.eyJ.", "\u{e4}.\u{e4}.\u{e4}"] {
        assert_eq!(doubt(garbage), Doubt::Malformed, "{garbage}");
    }
}

#[test]
fn a_token_says_who_and_until_when() {
    let now_s = NOW_MS / 1_000;
    let long = "x".repeat(65);
    let table = [
        ("sub", json!(null), Err(Doubt::Incomplete)),
        ("sub", json!(7), Err(Doubt::Malformed)),
        ("sub", json!(["alice"]), Err(Doubt::Malformed)),
        ("sub", json!(""), Err(Doubt::OutOfBounds)),
        ("sub", json!(long), Err(Doubt::OutOfBounds)),
        ("sub", json!("a\u{0}b"), Err(Doubt::OutOfBounds)),
        ("sub", json!("\u{4e2d}"), Ok(("\u{4e2d}".to_owned(), "phone".to_owned()))),
        ("dev", json!(null), Ok(("alice".to_owned(), "default".to_owned()))),
        ("dev", json!(7), Err(Doubt::Malformed)),
        ("dev", json!(""), Err(Doubt::OutOfBounds)),
        ("dev", json!(long), Err(Doubt::OutOfBounds)),
        ("exp", json!(null), Err(Doubt::Incomplete)),
        ("exp", json!("9999999999"), Err(Doubt::Malformed)),
        ("exp", json!(now_s - 1), Err(Doubt::Expired)),
        ("exp", json!(now_s), Err(Doubt::Expired)),
        ("exp", json!(now_s + 1), alice()),
        ("exp", json!(now_s as f64 + 0.5), alice()),
        ("exp", json!(-1), Err(Doubt::Expired)),
        ("exp", json!(1e300), alice()),
        ("exp", json!(u64::MAX), alice()),
        ("nbf", json!(now_s - 9), alice()),
        ("nbf", json!(now_s + 30), alice()),
        ("nbf", json!(now_s + 31), Err(Doubt::NotYet)),
        ("nbf", json!("soon"), Err(Doubt::Malformed)),
        ("iat", json!(now_s + 9_999), alice()),
        ("iss", json!("https://id.example.org"), alice()),
        ("aud", json!("elsewhere"), Err(Doubt::Audience)),
        ("aud", json!([]), Err(Doubt::Audience)),
        ("admin", json!({"any": ["thing"]}), alice()),
    ];
    for (name, value, wanted) in table {
        let token = signed(&hs256(), &claims_with(name, value.clone()));
        let checked = checked(&mut tokens_of(Algorithm::HS256), &token);
        assert_eq!(checked, wanted, "{name}: {value}");
    }
    let twice = format!("{}.{}", part(&hs256()), URL_SAFE_NO_PAD.encode(
        r#"{"sub":"alice","sub":"bob","exp":9999999999}"#,
    ));
    let key = signer(Algorithm::HS256);
    let signature = jsonwebtoken::crypto::sign(twice.as_bytes(), &key, Algorithm::HS256);
    assert_eq!(doubt(&format!("{twice}.{}", signature.expect("signed"))), Doubt::Malformed);
    let critical = json!({"alg": "HS256", "crit": ["b64"], "b64": false});
    assert_eq!(doubt(&signed(&critical, &claims())), Doubt::Malformed);
}

#[test]
fn issuer_and_audience_are_checked_where_asked_for() {
    let mut tokens = tokens_of(Algorithm::HS256);
    tokens.issuer = Some("https://id.example.org".to_owned());
    tokens.audience = Some("aldis".to_owned());
    let table = [
        (json!("https://id.example.org"), json!("aldis"), alice()),
        (json!("https://id.example.org"), json!(["other", "aldis"]), alice()),
        (json!("https://id.example.org"), json!(["other"]), Err(Doubt::Audience)),
        (json!("https://id.example.org"), json!(null), Err(Doubt::Audience)),
        (json!("https://id.example.org/"), json!("aldis"), Err(Doubt::Issuer)),
        (json!(null), json!("aldis"), Err(Doubt::Issuer)),
    ];
    for (issuer, audience, wanted) in table {
        let mut claims = claims();
        claims["iss"] = issuer;
        claims["aud"] = audience;
        assert_eq!(checked(&mut tokens, &signed(&hs256(), &claims)), wanted, "{claims}");
    }
}

#[test]
fn a_key_file_is_a_public_key_or_a_secret() {
    let fault = |content: &[u8]| {
        let fault = KeySet::from_key_file(content).err().expect("refused");
        fault.to_string()
    };
    assert!(fault(b"short").contains("at least 32 bytes, this one 5"));
    assert!(fault(b"").contains("this one 0"));
    assert!(fault(ED25519_PRIVATE.as_bytes()).contains("openssl pkey"));
    assert!(fault(P256_PRIVATE.as_bytes()).contains("openssl pkey"));
    for other in [P384_PUBLIC, RSA_PUBLIC, P256_COMPRESSED] {
        assert!(fault(other.as_bytes()).contains("not the public key of Ed25519"));
    }
    let renamed = ED25519_PUBLIC.replace("PUBLIC KEY", "CERTIFICATE");
    assert!(fault(renamed.as_bytes()).contains("not the public key"));
    assert!(fault(P256_PUBLIC[..120].as_bytes()).contains("not one whole block"));
    let line_ended = [SECRET, b"\r\n"].concat();
    let bytes_ended = [&[0xff_u8; 40][..], b"\n"].concat();
    for (content, secret) in [(&line_ended, SECRET), (&bytes_ended, &bytes_ended)] {
        let mut tokens = tokens(KeySet::from_key_file(content).expect("a secret"));
        let key = EncodingKey::from_secret(secret);
        let token = signed_by(&hs256(), &claims(), &key, Algorithm::HS256);
        assert_eq!(checked(&mut tokens, &token), alice());
    }
}

/// A JWK of each kind: `e` Ed25519, `c` P-256, `s` a secret.
fn jwk(id: &str) -> Value {
    let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let (ed, p256) = (der(ED25519_PUBLIC), der(P256_PUBLIC));
    match id {
        "e" => json!({"kty": "OKP", "crv": "Ed25519", "kid": "e", "x": encode(&ed[12..])}),
        "c" => json!({"kty": "EC", "crv": "P-256", "kid": "c", "use": "sig", "alg": "ES256",
            "x": encode(&p256[27..59]), "y": encode(&p256[59..])}),
        _ => json!({"kty": "oct", "kid": "s", "k": encode(SECRET), "key_ops": ["verify"]}),
    }
}

fn set_of(keys: &[Value]) -> KeySet {
    KeySet::from_jwks(json!({"keys": keys}).to_string().as_bytes()).expect("a set")
}

fn signed_with_id(id: &str, algorithm: Algorithm) -> String {
    let header = json!({"alg": algorithm, "kid": id});
    signed_by(&header, &claims(), &signer(algorithm), algorithm)
}

#[test]
fn a_set_has_keys_by_their_ids() {
    let mut all = tokens(set_of(&[jwk("e"), jwk("c"), jwk("s")]));
    let pairs = [("e", Algorithm::EdDSA), ("c", Algorithm::ES256), ("s", Algorithm::HS256)];
    for (id, algorithm) in pairs {
        assert_eq!(checked(&mut all, &signed_with_id(id, algorithm)), alice());
        let unnamed = json!({"alg": algorithm});
        let token = signed_by(&unnamed, &claims(), &signer(algorithm), algorithm);
        assert_eq!(checked(&mut all, &token), alice(), "without an id");
        let unknown = signed_with_id("x", algorithm);
        assert_eq!(checked(&mut all, &unknown), Err(Doubt::UnknownKey));
    }
    let crossed = signed_with_id("e", Algorithm::HS256);
    assert_eq!(checked(&mut all, &crossed), Err(Doubt::Algorithm));
    let none = signed_with_id("s", Algorithm::HS256);
    assert_eq!(checked(&mut tokens(set_of(&[])), &none), Err(Doubt::UnknownKey));
}

#[test]
fn keys_for_something_else_are_passed_over() {
    let with = |id: &str, name: &str, value: Value| {
        let mut key = jwk(id);
        key[name] = value;
        key
    };
    let passed_over = [
        with("s", "use", json!("enc")),
        with("s", "key_ops", json!(["sign"])),
        with("s", "alg", json!("HS512")),
        with("s", "k", json!("c2hvcnQ")),
        with("s", "k", json!("not base64url!")),
        with("s", "kid", json!("x".repeat(257))),
        with("s", "kid", json!(7)),
        with("c", "crv", json!("P-384")),
        with("c", "alg", json!("ES384")),
        with("c", "alg", json!("HS256")),
        with("c", "x", json!("AAAA")),
        with("c", "y", json!(null)),
        with("e", "crv", json!("Ed448")),
        with("e", "crv", json!("X25519")),
        with("e", "x", json!(STANDARD.encode([0xff; 32]))),
        with("e", "alg", json!("none")),
        json!({"kty": "RSA", "n": "AQAB", "e": "AQAB", "alg": "RS256"}),
        json!({}),
        json!("key"),
        json!(null),
    ];
    for key in &passed_over {
        assert_eq!(set_of(std::slice::from_ref(key)).len(), 0, "{key}");
    }
    let mut mixed = passed_over.to_vec();
    mixed.push(with("e", "alg", json!("Ed25519")));
    assert_eq!(set_of(&mixed).len(), 1);
}

#[test]
fn a_document_that_is_no_set_is_refused_whole() {
    let text = json!({"keys": [jwk("e")]}).to_string();
    assert!(KeySet::from_jwks(text.as_bytes()).is_ok());
    for size in 0..text.len() {
        assert!(KeySet::from_jwks(&text.as_bytes()[..size]).is_err(), "prefix of {size}");
    }
    for wrong in ["[]", "{}", r#"{"keys":{}}"#, r#"{"keys":null}"#, "<html>"] {
        assert!(KeySet::from_jwks(wrong.as_bytes()).is_err(), "{wrong}");
    }
    let many = json!({"keys": vec![json!({}); KEY_COUNT_MAX + 1]}).to_string();
    assert!(KeySet::from_jwks(many.as_bytes()).is_err());
    let large = format!("{{\"keys\":[],\"x\":\"{}\"}}", "x".repeat(256 * 1024));
    assert!(KeySet::from_jwks(large.as_bytes()).is_err());
}

fn door_with_tokens() -> Door {
    Door { identities: Identities::Tokens(tokens_of(Algorithm::HS256)), ..door() }
}

fn admitted(door: &mut Door, query: &str, fields: &str) -> Result<Admitted, u16> {
    let head = head(query, &format!("Host: localhost\r\n{fields}"));
    let (request, _) = Request::parse(&head).expect("valid").expect("complete");
    door.admit(&request, NOW_MS).map_err(|refusal| refusal.status)
}

#[test]
fn a_token_is_taken_from_header_subprotocol_or_query() {
    let good = signed(&hs256(), &claims());
    let bob = signed(&hs256(), &claims_with("sub", json!("bob")));
    let in_subprotocol = format!("Sec-WebSocket-Protocol: bearer.{good}\r\n");
    let table = [
        (String::new(), format!("Authorization: Bearer {good}\r\n"), Ok("alice")),
        (String::new(), format!("authorization: bEARER   {good} \r\n"), Ok("alice")),
        (String::new(), format!("Sec-WebSocket-Protocol: bearer.{good}\r\n"), Ok("alice")),
        (format!("?token={good}"), String::new(), Ok("alice")),
        (format!("?token={bob}"), format!("Authorization: Bearer {good}\r\n"), Ok("alice")),
        (format!("?token={bob}"), in_subprotocol, Ok("alice")),
        (format!("?token={good}"), "Authorization: Basic YTpi\r\n".to_owned(), Ok("alice")),
        (format!("?user=bob&device=tv&token={good}"), String::new(), Ok("alice")),
        (format!("?user=&device={}&token={good}", "x".repeat(99)), String::new(), Ok("alice")),
        (format!("?token={good}"), "Authorization: Bearer x.y.z\r\n".to_owned(), Err(401)),
        (format!("?token={good}"), "Authorization: Bearer\r\n".to_owned(), Err(401)),
        (
            String::new(),
            format!("Authorization: Bearer {good}\r\nAuthorization: Bearer {good}\r\n"),
            Err(401),
        ),
        (
            String::new(),
            format!("Sec-WebSocket-Protocol: bearer.{good}, bearer.{bob}\r\n"),
            Err(401),
        ),
        ("?user=alice".to_owned(), String::new(), Err(401)),
        ("?token=".to_owned(), String::new(), Err(401)),
        (format!("?token={good}&token={good}"), String::new(), Err(400)),
        (format!("?token={good}&user=%ff"), String::new(), Err(400)),
        (String::new(), String::new(), Err(401)),
    ];
    for (query, fields, wanted) in table {
        let admitted = admitted(&mut door_with_tokens(), &query, &fields);
        let user = admitted.as_ref().map(|admitted| &*admitted.user).map_err(|status| *status);
        assert_eq!(user, wanted, "{query} {fields}");
        if let Ok(admitted) = admitted {
            assert_eq!((&*admitted.device, admitted.subprotocol), ("phone", None));
        }
    }
}

#[test]
fn out_of_bounds_is_400_and_no_keys_yet_is_503_and_all_is_counted() {
    let mut door = door_with_tokens();
    let long = signed(&hs256(), &claims_with("sub", json!("x".repeat(65))));
    assert_eq!(admitted(&mut door, &format!("?token={long}"), ""), Err(400));
    assert_eq!(door.counters.doubts[Doubt::OutOfBounds as usize], 1);
    assert!(admitted(&mut door, "", "").is_err());
    assert_eq!(door.counters.doubts[Doubt::Missing as usize], 1);
    let token = signed(&hs256(), &claims());
    assert!(admitted(&mut door, &format!("?token={token}"), "").is_ok());
    assert_eq!((door.counters.tokens, door.counters.doubts.iter().sum::<u64>()), (1, 2));
    let (keys, _wanted) = KeySource::fed(super::super::feed::Feed::default());
    door.identities = Identities::Tokens(Tokens { keys, issuer: None, audience: None });
    assert_eq!(admitted(&mut door, &format!("?token={token}"), ""), Err(503));
    for (number, doubt) in Doubt::ALL.into_iter().enumerate() {
        assert_eq!(doubt as usize, number);
    }
}

#[test]
fn a_ticket_stands_for_the_token_until_it_ends_and_begets_none_that_lives_longer() {
    let mut door = door_with_tokens();
    let token = signed(&hs256(), &claims());
    let term = admitted(&mut door, &format!("?token={token}"), "").expect("admitted").term;
    let ends_unix_ms = Some(NOW_MS + 3_600_000);
    assert_eq!(term, Term { ends_unix_ms, ticket_ends_unix_ms: None });

    let ticket = Tickets::new(b"secret").issue_until("alice", "tv", SESSION, NOW_MS + 5);
    let queries = [format!("?ticket={ticket}"), format!("?ticket={ticket}&user=bob&token=x.y.z")];
    for query in queries {
        let admitted = admitted(&mut door, &query, "").expect("admitted");
        assert_eq!((&*admitted.user, &*admitted.device), ("alice", "tv"));
        let end = Some(NOW_MS + 5);
        assert_eq!(admitted.term, Term { ends_unix_ms: end, ticket_ends_unix_ms: end });
    }
    let expired = Tickets::new(b"secret").issue_until("alice", "tv", SESSION, NOW_MS);
    let foreign = Tickets::new(b"other").issue_until("alice", "tv", SESSION, NOW_MS + 5);
    for bad in [&expired, &foreign, ""] {
        assert_eq!(admitted(&mut door, &format!("?ticket={bad}&token={token}"), ""), Err(401));
    }
}
