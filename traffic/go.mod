module traffic

go 1.21
