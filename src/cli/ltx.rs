//! `weir ltx`: look into change-set files, merge them, apply them to plain SQLite files.
//!
//! Works on files alone; no node needs to run.

mod dump;
mod write;

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;

use crate::ltx::{DecodeError, Decoder, Format, PageEncoding};

const DUMP_EXAMPLES: &str = "\
Examples:
  weir ltx dump 0000000000000001-0000000000000004.ltx
  weir ltx dump --json *.ltx | jq '.[].pages | length'
  weir ltx dump --format v1 /var/lib/litefs/dbs/app.db/ltx/0000000000000001-0000000000000001.ltx";
const VERIFY_EXAMPLES: &str = "\
Examples:
  weir ltx verify *.ltx
  weir ltx verify --json backup/*.ltx > report.json || echo damaged

The exit code is 1 if a file is damaged or missing.";
const MERGE_EXAMPLES: &str = "\
Examples:
  weir ltx merge -o merged.ltx 1.ltx 2.ltx 3.ltx
  weir ltx merge --page-encoding frame -o for-old-litestream.ltx *.ltx
  weir ltx merge --format v1 -o v3.ltx litefs.ltx

The files must follow each other: each begins at the transaction after the one before it.";
const CHECKSUM_EXAMPLES: &str = "\
Examples:
  weir ltx checksum app.db";
const ENCODE_EXAMPLES: &str = "\
Examples:
  weir ltx encode -o snapshot.ltx app.db
  weir ltx encode --txid 500 --no-checksum -o snapshot.ltx app.db";
const APPLY_EXAMPLES: &str = "\
Examples:
  weir ltx apply restored.db snapshot.ltx 2.ltx 3.ltx

Every file is checked before the first byte is written, and the result is held against the last
file's checksum. The database is a plain file that nothing has open; it is changed in place.";

#[derive(clap::Subcommand, Debug)]
pub(crate) enum Command {
    /// Show what LTX files hold
    #[command(after_help = DUMP_EXAMPLES)]
    Dump(Inputs),
    /// Check LTX files in every part
    #[command(after_help = VERIFY_EXAMPLES)]
    Verify(Inputs),
    /// Make one LTX file of several that follow each other
    #[command(after_help = MERGE_EXAMPLES)]
    Merge {
        /// The files, in order
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
        #[command(flatten)]
        form: Form,
        #[command(flatten)]
        output: Output,
    },
    /// Print the checksum of a plain SQLite file
    #[command(after_help = CHECKSUM_EXAMPLES)]
    Checksum {
        /// The database
        #[arg(value_name = "DB")]
        database: PathBuf,
    },
    /// Write a plain SQLite file as a snapshot
    #[command(after_help = ENCODE_EXAMPLES)]
    Encode {
        /// The database
        #[arg(value_name = "DB")]
        database: PathBuf,
        /// The transaction the snapshot ends at
        #[arg(long, value_name = "N", default_value_t = 1)]
        txid: u64,
        /// Leave the database's checksum out, as Litestream wants it
        #[arg(long)]
        no_checksum: bool,
        #[command(flatten)]
        output: Output,
    },
    /// Apply LTX files to a plain SQLite file
    #[command(after_help = APPLY_EXAMPLES)]
    Apply {
        /// The database; created if the first file is a snapshot
        #[arg(value_name = "DB")]
        database: PathBuf,
        /// The files, in order
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
        #[command(flatten)]
        form: Form,
    },
}

/// Files to look into.
#[derive(clap::Args, Debug)]
pub(crate) struct Inputs {
    /// The files
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    form: Form,
}

/// The form of the files, which their bytes do not tell.
#[derive(clap::Args, Clone, Copy, Debug)]
pub(crate) struct Form {
    /// Form of the files: v3 of Weir and Litestream, v1 of LiteFS
    #[arg(long, value_name = "FORM", default_value = "v3")]
    format: FormName,
}

#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
enum FormName {
    V3,
    V1,
}

/// Where a file is written and how.
#[derive(clap::Args, Debug)]
pub(crate) struct Output {
    /// The file to write
    #[arg(short = 'o', long = "output", value_name = "OUT")]
    file: PathBuf,
    /// Replace an existing file
    #[arg(long)]
    force: bool,
    /// How pages are compressed; `frame` is for Litestream up to 0.5.15
    #[arg(long, value_name = "ENCODING", default_value = "block")]
    page_encoding: EncodingName,
}

#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
enum EncodingName {
    Block,
    Plain,
    Frame,
}

impl Form {
    fn get(self) -> Format {
        match self.format {
            FormName::V3 => Format::V3,
            FormName::V1 => Format::V1,
        }
    }
}

impl EncodingName {
    fn get(self) -> PageEncoding {
        match self {
            Self::Block => PageEncoding::Block,
            Self::Plain => PageEncoding::Plain,
            Self::Frame => PageEncoding::Frame,
        }
    }
}

pub(crate) fn run(command: &Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Dump(inputs) => dump::dump(&inputs.files, inputs.form.get(), inputs.json),
        Command::Verify(inputs) => dump::verify(&inputs.files, inputs.form.get(), inputs.json),
        Command::Merge { files, form, output } => write::merge(files, form.get(), output),
        Command::Checksum { database } => write::checksum(database),
        Command::Encode { database, txid, no_checksum, output } => {
            write::encode(database, *txid, *no_checksum, output)
        }
        Command::Apply { database, files, form } => write::apply(database, files, form.get()),
    }
}

/// Opens a file and reads its header.
fn open(path: &Path, format: Format) -> anyhow::Result<Decoder<BufReader<File>>> {
    let file = File::open(path).with_context(|| path.display().to_string())?;
    let decoder = Decoder::open(BufReader::with_capacity(1 << 16, file), format);
    decoder.map_err(|error| explain(path, format, error))
}

/// Names the file, and what it is if it is one of LiteFS.
fn explain(path: &Path, format: Format, error: DecodeError) -> anyhow::Error {
    let hint = match format {
        Format::V3 if is_whole(path, Format::V1) => {
            " (it is an LTX file of LiteFS, v1: give --format v1 to read it)"
        }
        Format::V1 if is_whole(path, Format::V3) => {
            " (it is an LTX file of Weir or Litestream, v3: leave --format v1 out to read it)"
        }
        Format::V3 | Format::V1 => "",
    };
    anyhow::anyhow!("{}: {error}{hint}", path.display())
}

/// Whether the file is without fault in that form.
fn is_whole(path: &Path, format: Format) -> bool {
    let Ok(file) = File::open(path) else { return false };
    Decoder::open(BufReader::new(file), format).and_then(Decoder::finish).is_ok()
}
