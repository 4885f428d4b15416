//! What a frame is compared with, and the values that one step keeps for a later one.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

/// Values by name: those of the run, and those kept from frames. `{name}` stands for one.
#[derive(Default)]
pub struct Values(BTreeMap<String, Value>);

impl Values {
    pub fn set(&mut self, name: &str, value: Value) {
        self.0.insert(name.to_owned(), value);
    }

    /// The same with every `{name}` replaced. A text that is nothing but one `{name}` becomes that
    /// value, whatever its type; names that are not known stay.
    pub fn fill(&self, given: &Value) -> Value {
        match given {
            Value::String(text) => self.fill_text(text),
            Value::Array(items) => items.iter().map(|item| self.fill(item)).collect(),
            Value::Object(fields) => {
                let name = |name: &str| match self.fill_text(name) {
                    Value::String(name) => name,
                    other => other.to_string(),
                };
                let fields = fields.iter().map(|(key, value)| (name(key), self.fill(value)));
                Value::Object(fields.collect::<Map<_, _>>())
            }
            other => other.clone(),
        }
    }

    fn fill_text(&self, text: &str) -> Value {
        let whole = text.strip_prefix('{').and_then(|rest| rest.strip_suffix('}'));
        if let Some(value) = whole.and_then(|name| self.0.get(name)) {
            return value.clone();
        }
        let filled = self.0.iter().fold(text.to_owned(), |text, (name, value)| {
            let shown = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            text.replace(&format!("{{{name}}}"), &shown)
        });
        Value::String(filled)
    }

    /// Compares a value with a pattern, whose names are filled in, and keeps what it says to keep.
    /// An object must have every field of the pattern, and may have more. The error names the
    /// first difference.
    pub fn compare(
        &mut self,
        pattern: &Value,
        found: Option<&Value>,
        at: &str,
    ) -> Result<(), String> {
        if let Value::String(text) = pattern
            && let Some(rule) = text.strip_prefix('<').and_then(|rest| rest.strip_suffix('>'))
        {
            return self.rule(rule, found, at);
        }
        let Some(found) = found else {
            return Err(format!("{at} is missing; it should be {pattern}"));
        };
        match (pattern, found) {
            (Value::Object(wanted), Value::Object(fields)) => {
                wanted.iter().try_for_each(|(name, wanted)| {
                    self.compare(wanted, fields.get(name), &join(at, name))
                })
            }
            (Value::Array(wanted), Value::Array(items)) if wanted.len() == items.len() => {
                let mut both = wanted.iter().zip(items).enumerate();
                both.try_for_each(|(index, (wanted, item))| {
                    self.compare(wanted, Some(item), &join(at, &index.to_string()))
                })
            }
            _ if pattern == found => Ok(()),
            _ => Err(format!("{at} is {found}; it should be {pattern}")),
        }
    }

    fn rule(&mut self, rule: &str, found: Option<&Value>, at: &str) -> Result<(), String> {
        let found = found.filter(|found| !found.is_null());
        let (is_met, wanted) = match rule.split_once(' ').unwrap_or((rule, "")) {
            ("absent", _) => (found.is_none(), "absent".to_owned()),
            ("any", _) => (found.is_some(), "there".to_owned()),
            ("text", _) => (found.is_some_and(Value::is_string), "a text".to_owned()),
            ("integer", _) => (found.is_some_and(is_integer), "an integer".to_owned()),
            ("digits", _) => {
                let digits =
                    |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
                (found.and_then(Value::as_str).is_some_and(digits), "decimal digits".to_owned())
            }
            ("above", least) => {
                let least: i64 = least.parse().map_err(|_| format!("no rule: <{rule}>"))?;
                let is_above = found.and_then(Value::as_i64).is_some_and(|found| found > least);
                (is_above, format!("above {least}"))
            }
            ("keep", name) => {
                if let Some(found) = found {
                    self.set(name, found.clone());
                }
                (found.is_some(), "there".to_owned())
            }
            _ => return Err(format!("no rule: <{rule}>")),
        };
        match (is_met, found) {
            (true, _) => Ok(()),
            (false, Some(found)) => Err(format!("{at} is {found}; it should be {wanted}")),
            (false, None) => Err(format!("{at} is missing; it should be {wanted}")),
        }
    }
}

/// Within what a client without 64-bit integers can hold (section 2 of the protocol).
fn is_integer(value: &Value) -> bool {
    value.as_i64().is_some_and(|value| value.unsigned_abs() < 1 << 53)
}

fn join(at: &str, name: &str) -> String {
    if at.is_empty() { name.to_owned() } else { format!("{at}.{name}") }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn values() -> Values {
        let mut values = Values::default();
        values.set("alice", json!("r1-alice"));
        values.set("seq", json!(7));
        values
    }

    #[test]
    fn names_are_filled_in_everywhere() {
        let given =
            json!({"to": "{alice}", "convos": {"dm:{alice}:b": "{seq}"}, "n": [1, "{seq}"]});
        let wanted = json!({"to": "r1-alice", "convos": {"dm:r1-alice:b": 7}, "n": [1, 7]});
        assert_eq!(values().fill(&given), wanted);
        assert_eq!(values().fill(&json!("{unknown} {seq}")), json!("{unknown} 7"));
    }

    #[test]
    fn every_rule_can_be_met_and_can_fail() {
        let cases = [
            ("<any>", json!(1), None),
            ("<absent>", Value::Null, Some(json!(1))),
            ("<text>", json!("x"), Some(json!(1))),
            ("<integer>", json!(-5), Some(json!(9_007_199_254_740_992_u64))),
            ("<digits>", json!("123"), Some(json!("12x"))),
            ("<above 3>", json!(4), Some(json!(3))),
            ("<keep x>", json!(1), None),
        ];
        for (rule, good, bad) in cases {
            let rule = json!(rule);
            assert_eq!(values().compare(&rule, Some(&good), "f"), Ok(()), "{rule}");
            assert!(values().compare(&rule, bad.as_ref(), "f").is_err(), "{rule}");
        }
        assert!(values().compare(&json!("<no such>"), Some(&json!(1)), "f").is_err());
    }

    #[test]
    fn more_fields_are_no_difference_and_fewer_are() {
        let mut values = values();
        let pattern = json!({"t": "sent", "seq": "<keep seq>", "convos": [{"head": 1}]});
        let frame = json!({"t": "sent", "seq": 9, "more": true, "convos": [{"head": 1, "x": 2}]});
        assert_eq!(values.compare(&pattern, Some(&frame), ""), Ok(()));
        assert_eq!(values.fill(&json!("{seq}")), json!(9));
        let frame = json!({"t": "sent", "seq": 9, "convos": [{"head": 2}]});
        let error = values.compare(&pattern, Some(&frame), "").expect_err("another head");
        assert_eq!(error, "convos.0.head is 2; it should be 1");
        let error = values.compare(&pattern, Some(&json!({"t": "sent"})), "").expect_err("less");
        assert!(error.ends_with("is missing; it should be [{\"head\":1}]"), "{error}");
    }
}
