//! Properties over random files.

use proptest::prelude::*;

use super::*;

/// Some change set: its header, its pages, its encoding.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    pub(super) header: Header,
    pub(super) pages: Vec<(u32, Vec<u8>)>,
    pub(super) encoding: PageEncoding,
}

impl Sample {
    pub(super) fn post(&self) -> Checksum {
        match (self.header.is_snapshot(), self.header.commit) {
            (_, 0) => Checksum::EMPTY,
            (true, _) => sum(self.header.page_size.get(), &self.pages),
            (false, _) => Checksum::new(77),
        }
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        encode(&self.header, &self.pages, self.post(), self.encoding).unwrap()
    }
}

/// A page: one byte repeated, noise, or a mixture, so that blocks compress well, badly and not.
pub(super) fn page_data(page_size: usize) -> impl Strategy<Value = Vec<u8>> {
    (any::<u8>(), any::<u64>(), 0..=3u8).prop_map(move |(fill, seed, mixture)| {
        let mut state = seed | 1;
        (0..page_size)
            .map(|at| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                let is_noise = match mixture {
                    0 => false,
                    1 => true,
                    2 => at % 64 < 12,
                    _ => at < page_size / 2,
                };
                if is_noise { (state >> 32) as u8 } else { fill }
            })
            .collect()
    })
}

pub(super) fn encodings() -> impl Strategy<Value = PageEncoding> {
    prop_oneof![Just(PageEncoding::Block), Just(PageEncoding::Plain), Just(PageEncoding::Frame)]
}

pub(super) fn samples() -> impl Strategy<Value = Sample> {
    let shape = (0..2u32, any::<bool>(), any::<bool>(), encodings(), 0..6u32);
    shape.prop_flat_map(|(shift, is_snapshot, has_checksums, encoding, commit)| {
        let page_size = 512 << shift;
        let commit = if has_checksums { commit } else { commit.max(1) };
        let pages = prop::collection::vec(page_data(page_size as usize), commit as usize);
        let chosen = prop::collection::vec(any::<bool>(), commit as usize);
        (pages, chosen).prop_map(move |(pages, chosen)| {
            let numbered = (1..).zip(pages).zip(chosen);
            let pages =
                numbered.filter(|(_, chosen)| is_snapshot || *chosen).map(|(p, _)| p).collect();
            let mut header = header(page_size, commit, if is_snapshot { 1 } else { 2 }, 9);
            if !has_checksums {
                header.flags = Flags::NO_CHECKSUM;
                header.pre_apply = None;
            }
            Sample { header, pages, encoding }
        })
    })
}

/// All pages of a file.
pub(super) fn pages_of(file: &LtxFile<'_>) -> Vec<(u32, Vec<u8>)> {
    let mut data = vec![0; file.header().page_size.bytes()];
    let read = |entry: &PageEntry| {
        file.read(*entry, &mut data).unwrap();
        (entry.page.get(), data.clone())
    };
    file.entries().iter().map(read).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn what_was_encoded_is_decoded(sample in samples()) {
        let bytes = sample.bytes();
        let file = LtxFile::parse(&bytes).unwrap();
        prop_assert_eq!(*file.header(), sample.header);
        prop_assert_eq!(pages_of(&file), sample.pages);
        let mut streamed = Vec::new();
        let mut decoder = Decoder::new(&bytes[..]).unwrap();
        while let Some(page) = decoder.next_page().unwrap() {
            streamed.push((page.page.get(), page.data.to_vec()));
        }
        prop_assert_eq!(streamed, pages_of(&file));
        prop_assert_eq!(decoder.finish().unwrap(), file.trailer());
        let trusted = LtxFile::parse_trusted(&bytes).unwrap();
        prop_assert_eq!(trusted.entries(), file.entries());
        prop_assert_eq!(trusted.trailer(), file.trailer());
    }

    /// The file checksum covers the pages uncompressed, so a flip inside an LZ4 block that leads to
    /// the same page is none to anybody.
    #[test]
    fn any_flipped_bit_is_noticed_or_changes_nothing(sample in samples(), places in prop::collection::vec(any::<prop::sample::Index>(), 64)) {
        let mut bytes = sample.bytes();
        for place in places {
            let bit = place.index(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            if let Ok(file) = LtxFile::parse(&bytes) {
                prop_assert_eq!(*file.header(), sample.header, "bit {}", bit);
                prop_assert_eq!(file.trailer().post_apply.unwrap_or(sample.post()), sample.post(), "bit {}", bit);
                prop_assert_eq!(pages_of(&file), sample.pages.clone(), "bit {}", bit);
            }
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn sums_kept_up_page_by_page_equal_sums_from_scratch(
        before in prop::collection::vec(page_data(512), 1..8),
        after in prop::collection::vec(page_data(512), 1..8),
    ) {
        let numbered = |pages: Vec<Vec<u8>>| (1..).zip(pages).collect::<Vec<(u32, Vec<u8>)>>();
        let (before, after) = (numbered(before), numbered(after));
        let mut kept = sum(512, &before);
        for (no, data) in before.iter().chain(&after) {
            kept = kept.toggle(page_sum(page(*no), data));
        }
        prop_assert_eq!(kept, sum(512, &after));
    }

    #[test]
    fn garbage_is_refused_alike_by_every_reader(
        bytes in prop::collection::vec(any::<u8>(), 0..400),
        has_magic in any::<bool>(),
    ) {
        let mut bytes = bytes;
        if has_magic && bytes.len() >= 20 {
            bytes[..16].copy_from_slice(&header(512, 3, 2, 2).to_bytes()[..16]);
        }
        fuzz_ltx_decode(&bytes);
    }

    #[test]
    fn merging_is_applying_one_after_another(script in prop::collection::vec(any::<u8>(), 0..40)) {
        fuzz_ltx_merge(&script);
    }

    #[test]
    fn any_block_is_a_page_or_refused(data in prop::collection::vec(any::<u8>(), 0..200)) {
        fuzz_lz4(&data);
    }

    #[test]
    fn damaged_files_are_refused_alike_by_every_reader(
        sample in samples(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut bytes = sample.bytes();
        for (place, byte) in changes {
            let at = place.index(bytes.len());
            bytes[at] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len() + 1));
        }
        fuzz_ltx_decode(&bytes);
    }
}

proptest! {
    // Every length of every file: few files.
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn a_file_cut_anywhere_is_refused(sample in samples()) {
        let bytes = sample.bytes();
        for len in 0..bytes.len() {
            prop_assert!(LtxFile::parse(&bytes[..len]).is_err(), "cut to {} bytes", len);
            prop_assert!(Decoder::new(&bytes[..len]).and_then(Decoder::finish).is_err());
            if let Ok(file) = LtxFile::parse_trusted(&bytes[..len]) {
                prop_assert_eq!(file.entries().len(), 0, "a tail that looks like one");
            }
        }
    }
}
