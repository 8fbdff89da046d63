"""The score's judge: what it sees in a picture, and when a picture counts."""
