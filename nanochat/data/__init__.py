"""From files to token ids: conversations and their template, readers, sources, the prepared corpus and questions."""
