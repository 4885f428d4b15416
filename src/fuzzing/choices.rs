//! An input read as a script: each byte is a choice. The end of the input chooses 0 for ever.

pub struct Choices<'a> {
    rest: &'a [u8],
}

impl<'a> Choices<'a> {
    pub fn new(input: &'a [u8]) -> Choices<'a> {
        Choices { rest: input }
    }

    pub fn is_over(&self) -> bool {
        self.rest.is_empty()
    }

    pub fn byte(&mut self) -> u8 {
        self.bytes(1).first().copied().unwrap_or_default()
    }

    /// Less than `count`, which is not 0.
    pub fn below(&mut self, count: usize) -> usize {
        let wide = usize::from(self.byte()) << 8 | usize::from(self.byte());
        wide % count
    }

    /// Small, or within 8 of the largest: where arithmetic fails if it does.
    pub fn number(&mut self) -> u64 {
        let byte = u64::from(self.byte());
        if byte < 248 { byte } else { u64::MAX - (255 - byte) }
    }

    /// The next `size` bytes, or what is left of the input.
    pub fn bytes(&mut self, size: usize) -> &'a [u8] {
        let (bytes, rest) = self.rest.split_at(size.min(self.rest.len()));
        self.rest = rest;
        bytes
    }
}
