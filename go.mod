module cryo

go 1.26
