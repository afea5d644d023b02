//! Environment variables inside configuration values.
//!
//! `${NAME}` is the variable, an error if it is not set. `${NAME:-text}` falls back to a text when it is
//! not set or empty. `${NAME == 'text'}`, `${NAME != "text"}` and `${A == B}` become `true` or `false`,
//! where a variable that is not set counts as empty. `$$` is a dollar sign; any other `$` stays.
//! Values are expanded after the file was parsed, so what a variable holds cannot break the syntax.

use std::borrow::Cow;

/// Why a value could not be expanded.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ExpandError {
    /// A variable without a value and without a fallback.
    #[error(
        "the environment variable {0} is not set; set it, or give a default with ${{{0}:-text}}"
    )]
    Unset(String),
    /// `${` without `}`.
    #[error("\"${{\" is never closed; write $$ for a dollar sign")]
    Unclosed,
    /// What stands between the braces is nothing known.
    #[error("cannot read ${{{0}}}; write ${{NAME}}, ${{NAME:-text}} or ${{NAME == 'text'}}")]
    Syntax(String),
}

/// Looks a variable up.
pub(super) type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Expands all variables of one value.
///
/// # Errors
/// [`ExpandError`] names the variable.
pub(super) fn expand<'a>(text: &'a str, lookup: Lookup<'_>) -> Result<Cow<'a, str>, ExpandError> {
    if !text.contains('$') {
        return Ok(Cow::Borrowed(text));
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(tail) = rest.strip_prefix('$') {
            out.push('$');
            rest = tail;
        } else if let Some(tail) = rest.strip_prefix('{') {
            let end = tail.find('}').ok_or(ExpandError::Unclosed)?;
            out.push_str(&evaluate(&tail[..end], lookup)?);
            rest = &tail[end + 1..];
        } else {
            out.push('$');
        }
    }
    out.push_str(rest);
    Ok(Cow::Owned(out))
}

fn evaluate(expression: &str, lookup: Lookup<'_>) -> Result<String, ExpandError> {
    if let Some((name, fallback)) = expression.split_once(":-") {
        let name = variable(name.trim()).ok_or_else(|| syntax(expression))?;
        return Ok(lookup(name).filter(|v| !v.is_empty()).unwrap_or_else(|| fallback.to_owned()));
    }
    for (operator, wanted) in [("==", true), ("!=", false)] {
        if let Some((left, right)) = expression.split_once(operator) {
            let left = operand(left, lookup).ok_or_else(|| syntax(expression))?;
            let right = operand(right, lookup).ok_or_else(|| syntax(expression))?;
            return Ok(((left == right) == wanted).to_string());
        }
    }
    let name = variable(expression.trim()).ok_or_else(|| syntax(expression))?;
    lookup(name).ok_or_else(|| ExpandError::Unset(name.to_owned()))
}

fn operand(text: &str, lookup: Lookup<'_>) -> Option<String> {
    let text = text.trim();
    for quote in ['\'', '"'] {
        if let Some(inner) = text.strip_prefix(quote) {
            return inner.strip_suffix(quote).map(str::to_owned);
        }
    }
    variable(text).map(|name| lookup(name).unwrap_or_default())
}

fn variable(name: &str) -> Option<&str> {
    let first = name.chars().next()?;
    let valid = (first.is_ascii_alphabetic() || first == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    valid.then_some(name)
}

fn syntax(expression: &str) -> ExpandError {
    ExpandError::Syntax(expression.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &str) {
        let lookup = |name: &str| match name {
            "REGION" | "PRIMARY_REGION" => Some("fra".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        };
        let found = match expand(text, &lookup) {
            Ok(value) => value.into_owned(),
            Err(error) => format!("error: {error}"),
        };
        assert_eq!(found, expected, "{text}");
    }

    #[test]
    fn variables_and_fallbacks_are_put_in() {
        check("plain", "plain");
        check("a-${REGION}.internal", "a-fra.internal");
        check("${NONE:-x}${EMPTY:-y}${REGION:-z}", "xyfra");
        check("${NONE:-}", "");
        check("costs $5, $$5 or $${REGION}", "costs $5, $5 or ${REGION}");
    }

    #[test]
    fn comparisons_become_truth_values() {
        check("${REGION == PRIMARY_REGION}", "true");
        check("${REGION != 'ams'}", "true");
        check("${REGION == \"ams\"}", "false");
        check("${NONE == ''}", "true");
    }

    #[test]
    fn errors_name_the_variable() {
        check(
            "${NONE}",
            "error: the environment variable NONE is not set; set it, or give a default with ${NONE:-text}",
        );
        check("${REGION", "error: \"${\" is never closed; write $$ for a dollar sign");
        check(
            "${a b}",
            "error: cannot read ${a b}; write ${NAME}, ${NAME:-text} or ${NAME == 'text'}",
        );
    }
}
