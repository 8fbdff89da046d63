"""Chat models that judge pictures, over any OpenAI-compatible URL.

| module | |
|---|---|
| `shown` | a picture as the official script sends it |
| `chat` | one call: what is sent, and what can come back |
| `answers` | the file of answers: a line a call, whole also after a kill |
| `asking` | all calls of a set: several at once, bounded retries, what was answered is not asked again |
"""
