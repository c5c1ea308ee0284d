"""The web pages: metrics by stage and department, and what people do about them."""
