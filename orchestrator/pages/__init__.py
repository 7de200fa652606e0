"""What a person looks at: bars and tables in the terminal, reports, pages of studies."""
