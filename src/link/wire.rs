//! The byte layout of everything that crosses a link or enters the log: little endian, no padding.
//!
//! Integers are as wide as they say. A text is a `u16` length and UTF-8; bytes are a `u32` length
//! and the bytes; a list is a `u32` count and the items; an option is one byte (0 or 1) and the
//! value; an enum is one tag byte and its fields in order. [`wire_struct`] and [`wire_enum`] make
//! the codec from the declaration, so that the declaration is the document.

use std::rc::Rc;

use bytes::{Buf, Bytes};

/// Room that most values fit into: one allocation instead of four that double.
const VALUE_SIZE_USUAL: usize = 128;

/// Why bytes could not be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("the input ends inside a field")]
    Truncated,
    #[error("bytes are left after the last field")]
    Trailing,
    #[error("unknown tag {0}")]
    Tag(u8),
    #[error("a text is not UTF-8")]
    Utf8,
    #[error("a count is larger than the input can hold")]
    Count,
}

/// A value with a fixed byte layout.
pub trait Wire: Sized {
    /// Appends the value's bytes.
    fn write(&self, out: &mut Vec<u8>);
    /// Takes the value off the front of `input`.
    fn read(input: &mut Reader) -> Result<Self, Malformed>;

    /// The value's bytes alone.
    fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(VALUE_SIZE_USUAL);
        self.write(&mut out);
        out
    }

    /// Decodes exactly one value from the whole of `bytes`.
    fn from_bytes(bytes: Bytes) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes);
        let value = Self::read(&mut reader)?;
        if reader.is_empty() { Ok(value) } else { Err(Malformed::Trailing) }
    }
}

/// A cursor over received bytes; `Bytes` fields are taken out of it without a copy.
pub struct Reader {
    rest: Bytes,
}

impl Reader {
    pub fn new(bytes: Bytes) -> Reader {
        Reader { rest: bytes }
    }

    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// Bytes not taken yet.
    pub fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// The next `size` bytes.
    pub fn take(&mut self, size: usize) -> Result<Bytes, Malformed> {
        if size > self.rest.len() {
            return Err(Malformed::Truncated);
        }
        Ok(self.rest.split_to(size))
    }

    /// The next bytes by value. `take` counts a reference up and down again, atomically, which is
    /// more work than the integer itself.
    fn array<const SIZE: usize>(&mut self) -> Result<[u8; SIZE], Malformed> {
        let array = *self.rest.first_chunk().ok_or(Malformed::Truncated)?;
        self.rest.advance(SIZE);
        Ok(array)
    }

    /// The next `size` bytes as a text of its own.
    fn text(&mut self, size: usize) -> Result<Rc<str>, Malformed> {
        let bytes = self.rest.get(..size).ok_or(Malformed::Truncated)?;
        let text = std::str::from_utf8(bytes).map_err(|_| Malformed::Utf8)?.into();
        self.rest.advance(size);
        Ok(text)
    }
}

macro_rules! wire_integer {
    ($($type:ty),*) => {$(
        impl Wire for $type {
            fn write(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }
            fn read(input: &mut Reader) -> Result<Self, Malformed> {
                input.array().map(<$type>::from_le_bytes)
            }
        }
    )*};
}
wire_integer!(u8, u16, u32, u64, i64);

impl Wire for bool {
    fn write(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self));
    }
    fn read(input: &mut Reader) -> Result<Self, Malformed> {
        match u8::read(input)? {
            0 => Ok(false),
            1 => Ok(true),
            tag => Err(Malformed::Tag(tag)),
        }
    }
}

impl Wire for Rc<str> {
    fn write(&self, out: &mut Vec<u8>) {
        let size = u16::try_from(self.len()).expect("names are bounded by limits.rs");
        size.write(out);
        out.extend_from_slice(self.as_bytes());
    }
    fn read(input: &mut Reader) -> Result<Self, Malformed> {
        let size = u16::read(input)?;
        input.text(usize::from(size))
    }
}

impl Wire for Bytes {
    fn write(&self, out: &mut Vec<u8>) {
        let size = u32::try_from(self.len()).expect("entries are bounded by limits.rs");
        size.write(out);
        out.extend_from_slice(self);
    }
    fn read(input: &mut Reader) -> Result<Self, Malformed> {
        let size = u32::read(input)?;
        input.take(size as usize)
    }
}

impl<T: Wire> Wire for Vec<T> {
    fn write(&self, out: &mut Vec<u8>) {
        let count = u32::try_from(self.len()).expect("entries are bounded by limits.rs");
        count.write(out);
        self.iter().for_each(|item| item.write(out));
    }
    fn read(input: &mut Reader) -> Result<Self, Malformed> {
        let count = u32::read(input)? as usize;
        // Every item takes at least one byte, so a count beyond that is a lie, not an allocation.
        if count > input.remaining() {
            return Err(Malformed::Count);
        }
        (0..count).map(|_| T::read(input)).collect()
    }
}

impl<T: Wire> Wire for Option<T> {
    fn write(&self, out: &mut Vec<u8>) {
        self.is_some().write(out);
        if let Some(value) = self {
            value.write(out);
        }
    }
    fn read(input: &mut Reader) -> Result<Self, Malformed> {
        if bool::read(input)? { T::read(input).map(Some) } else { Ok(None) }
    }
}

impl<A: Wire, B: Wire> Wire for (A, B) {
    fn write(&self, out: &mut Vec<u8>) {
        self.0.write(out);
        self.1.write(out);
    }
    fn read(input: &mut Reader) -> Result<Self, Malformed> {
        Ok((A::read(input)?, B::read(input)?))
    }
}

/// Declares a struct whose fields cross the wire in the order they stand.
macro_rules! wire_struct {
    ($(#[$meta:meta])* pub struct $name:ident {
        $($(#[$field_meta:meta])* pub $field:ident: $type:ty,)*
    }) => {
        $(#[$meta])*
        pub struct $name { $($(#[$field_meta])* pub $field: $type,)* }
        impl $crate::link::wire::Wire for $name {
            fn write(&self, out: &mut Vec<u8>) {
                $($crate::link::wire::Wire::write(&self.$field, out);)*
            }
            fn read(
                input: &mut $crate::link::wire::Reader,
            ) -> Result<Self, $crate::link::wire::Malformed> {
                Ok($name { $($field: $crate::link::wire::Wire::read(input)?,)* })
            }
        }
    };
}

/// Declares an enum: one tag byte, then the variant's fields in the order they stand.
macro_rules! wire_enum {
    ($(#[$meta:meta])* pub enum $name:ident {
        $($(#[$variant_meta:meta])* $tag:literal = $variant:ident $({
            $($(#[$field_meta:meta])* $field:ident: $type:ty,)*
        })?,)*
    }) => {
        $(#[$meta])*
        pub enum $name {
            $($(#[$variant_meta])* $variant $({ $($(#[$field_meta])* $field: $type,)* })?,)*
        }
        impl $crate::link::wire::Wire for $name {
            fn write(&self, out: &mut Vec<u8>) {
                match self {
                    $($name::$variant $({ $($field,)* })? => {
                        out.push($tag);
                        $($($crate::link::wire::Wire::write($field, out);)*)?
                    })*
                }
            }
            fn read(
                input: &mut $crate::link::wire::Reader,
            ) -> Result<Self, $crate::link::wire::Malformed> {
                match <u8 as $crate::link::wire::Wire>::read(input)? {
                    $($tag => Ok($name::$variant $({
                        $($field: $crate::link::wire::Wire::read(input)?,)*
                    })?),)*
                    tag => Err($crate::link::wire::Malformed::Tag(tag)),
                }
            }
        }
    };
}

pub(crate) use {wire_enum, wire_struct};

#[cfg(test)]
mod tests {
    use super::*;

    wire_struct! {
        #[derive(Clone, Debug, PartialEq)]
        pub struct Sample {
            pub name: Rc<str>,
            pub body: Bytes,
            pub places: Vec<(u16, Option<i64>)>,
        }
    }
    wire_enum! {
        #[derive(Clone, Debug, PartialEq)]
        pub enum Choice {
            1 = Nothing,
            7 = Thing { sample: Sample, flag: bool, },
        }
    }

    fn sample() -> Choice {
        let places = vec![(7, None), (9, Some(-3))];
        let sample = Sample { name: "alice".into(), body: Bytes::from_static(b"\0\xff"), places };
        Choice::Thing { sample, flag: true }
    }

    #[test]
    fn a_value_survives_the_wire() {
        for value in [sample(), Choice::Nothing] {
            assert_eq!(Choice::from_bytes(value.to_bytes().into()), Ok(value));
        }
    }

    #[test]
    fn every_prefix_is_refused() {
        let bytes = Bytes::from(sample().to_bytes());
        for size in 0..bytes.len() {
            assert!(Choice::from_bytes(bytes.slice(..size)).is_err(), "prefix of {size} bytes");
        }
        let mut longer = bytes.to_vec();
        longer.push(0);
        assert_eq!(Choice::from_bytes(longer.into()), Err(Malformed::Trailing));
    }

    #[test]
    fn a_lying_count_allocates_nothing() {
        let bytes = Bytes::from(u32::MAX.to_bytes());
        assert_eq!(Vec::<u64>::from_bytes(bytes), Err(Malformed::Count));
        assert_eq!(Choice::from_bytes(Bytes::from_static(&[3])), Err(Malformed::Tag(3)));
    }
}
