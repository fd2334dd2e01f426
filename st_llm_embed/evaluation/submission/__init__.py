"""What a submission to the MTEB leaderboard needs, and what a training set holds of test texts."""
