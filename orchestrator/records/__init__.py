"""What is kept of runs in MLflow. The only room that imports mlflow."""
