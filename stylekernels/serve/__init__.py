"""Painting in the browser: one process with a page, a WebSocket for frames, and one painter."""
