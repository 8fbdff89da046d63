"""What the nano model's world is made of: drawings, scenes, sentences, edits and questions."""
