"""What a run found: as values, as JSON, as the questions of a gate, and as words for people.

Console, Markdown, JUnit, annotations and HTML are all made of the same :class:`Report`.
"""
