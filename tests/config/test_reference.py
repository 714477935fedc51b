"""The reference of the config, which is written from the schema."""

from pathlib import Path

from jaxclf.config import reference, schema
from jaxclf.config.renames import RENAMED

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "config.md"


def test_the_page_is_what_the_schema_says():
    assert PAGE.read_text() == reference.markdown(), (
        "write it again: python -m jaxclf.config.reference > docs/reference/config.md"
    )


def test_every_field_has_a_row_with_what_it_means():
    rows = {}
    for line in reference.markdown().splitlines():
        if line.startswith("| `"):
            cells = [cell.strip() for cell in line.replace(r"\|", "¦").split("|")[1:-1]]
            rows[cells[0].strip("`")] = cells[1:]
    assert {*rows} == {*schema.FIELDS, *RENAMED}
    for name, field in schema.FIELDS.items():
        default, values, meaning, affects = rows[name]
        assert default == f"`{field.default!r}`".replace("|", "¦")
        assert (meaning, affects) == (field.meaning, field.affects)
        assert all(f"`{choice}`" in values for choice in field.rule.choices)
        assert values
