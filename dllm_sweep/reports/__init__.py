"""What people read of a sweep: listings and the leaderboard."""
