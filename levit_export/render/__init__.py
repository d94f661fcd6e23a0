"""Reports for people: terminal, and later Markdown, JUnit and HTML."""
