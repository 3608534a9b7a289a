"""Templates of the pages, which share a head and a style sheet."""

import jinja2


def environment(package: str) -> jinja2.Environment:
    """Load templates of a package, and `page.html.j2` for it to extend."""
    packages = dict.fromkeys((package, "moe_benchmarks._report"))
    return jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(each) for each in packages]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
