module bookinfo/details

go 1.21
