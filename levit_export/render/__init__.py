"""Reports for people and for CI: terminal, Markdown, JUnit XML, annotations and HTML."""
