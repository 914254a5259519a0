use std::fmt;

use crate::inspect::{Binary, Inspection, Release, World};

impl fmt::Display for World {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            World::HttpHandler(release) => write!(out, "HTTP handler (WASI {release})"),
            World::Command(release) => write!(out, "command (WASI {release})"),
            World::Library => out.write_str("library (exports nothing that a pod can start)"),
        }
    }
}

impl fmt::Display for Binary {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Binary::Component => "component",
            Binary::Module => "core module",
        })
    }
}

fn list<T: fmt::Display>(out: &mut fmt::Formatter<'_>, title: &str, items: &[T]) -> fmt::Result {
    if items.is_empty() {
        return writeln!(out, "{title:<10}none");
    }
    for (index, item) in items.iter().enumerate() {
        let head = if index == 0 { title } else { "" };
        writeln!(out, "{head:<10}{item}")?;
    }
    Ok(())
}

impl fmt::Display for Inspection {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "{:<10}{}", "Kind:", self.binary)?;
        writeln!(out, "{:<10}{}", "World:", self.world)?;
        writeln!(out, "{:<10}{}", "Size:", size(self.size))?;
        let shown = if self.binary == Binary::Module && self.world == World::Command(Release::Preview1) {
            Vec::new()
        } else {
            self.exports.clone()
        };
        list(out, "Exports:", &shown)?;
        list(out, "Imports:", &self.imports)?;
        list(out, "Grants:", &self.grants())?;
        let refused = self.refused();
        if !refused.is_empty() {
            list(out, "Refused:", &refused)?;
            writeln!(out, "{:<10}no pod can run it, because nobody provides what is refused", "")?;
        }
        Ok(())
    }
}

const KIB: u64 = 1024;

/// A size for people, with one decimal from a KiB on.
fn size(bytes: u64) -> String {
    let (unit, name) = match bytes {
        0..KIB => return format!("{bytes} bytes"),
        KIB..0x10_0000 => (KIB, "KiB"),
        _ => (KIB * KIB, "MiB"),
    };
    let tenths = bytes * 10 / unit;
    format!("{}.{} {name}", tenths / 10, tenths % 10)
}
