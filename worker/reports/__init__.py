"""What operators and programs are shown: reports, explain, health, doctor."""
