"""Why a photo has its score: maps, causes, bursts, and the analyses of the paper."""
